"""Animated pictures from arrays: GIF for everywhere, WebP where every colour has to stay as it is."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perceiver_obs.files import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".gif", ".webp")
SHORTEST_FRAME = 20  # milliseconds; browsers slow down GIFs that ask for less
COLORS, EXACT_COLORS = 256, 32


Picture = NDArray[np.uint8]


def save_animation(path: Path, pictures: Iterable[Picture], milliseconds: int, samples: Sequence[Picture]) -> None:
    """Writes pictures uint8 `[H, W, 3]` as an endless animation; the suffix of `path` says in which format.

    A WebP is without loss. A GIF has 256 colours for all its pictures, so that nothing flickers, chosen
    for `samples`.

    Args:
        path: ends in .gif or .webp.
        pictures: one after the other; read as they are written.
        milliseconds: that each is shown, 20 or more.
        samples: some of the pictures.
    """
    from PIL import Image

    images: Iterator[Image.Image]
    options: dict[str, Any] = {}
    if path.suffix == ".gif":
        images = map(Palette(np.concatenate(samples)), pictures)
    else:
        images = map(Image.fromarray, pictures)
        options = {"lossless": True, "quality": 50, "method": 2}  # with lossless these trade size for speed
    first = next(images)
    buffer = io.BytesIO()
    kind = path.suffix[1:].upper()
    first.save(buffer, kind, save_all=True, append_images=images, duration=milliseconds, loop=0, **options)
    write_atomic(path, buffer.getvalue())


class Palette:
    """256 colours for pictures like `samples`, uint8 `[H, W, 3]`: the commonest as they are, the others by median cut.

    Called with a picture, it gives an image in which each pixel has the nearest of these colours. (Pillow's own mapping
    is approximate: it greys a white background.)
    """

    def __init__(self, samples: Picture):
        from PIL import Image

        counts = np.bincount(_pack(samples).ravel())
        colors = np.flatnonzero(counts)
        common = _unpack(colors[np.argsort(-counts[colors], kind="stable")[:EXACT_COLORS]])
        rest = Image.fromarray(samples).quantize(COLORS - len(common), Image.Quantize.MEDIANCUT).getpalette()
        self._colors = np.concatenate([common, np.array(rest, np.uint8).reshape(-1, 3)])[:COLORS]
        self._nearest = np.full(1 << 24, -1, np.int16)

    def __call__(self, picture: Picture) -> "Image":
        from PIL import Image

        packed = _pack(picture)
        new = np.unique(packed[self._nearest[packed] < 0])
        colors = self._colors.astype(np.float32)
        # Squared distances less what all have in common; whole numbers below 2²⁴, so exact.
        distances = np.square(colors).sum(axis=1) - 2 * _unpack(new).astype(np.float32) @ colors.T
        self._nearest[new] = distances.argmin(axis=1)
        image = Image.fromarray(self._nearest[packed].astype(np.uint8))
        image.putpalette(self._colors.tobytes())
        return image


def _pack(colors: Picture) -> NDArray[np.int64]:
    """One number for each colour, `[...]` from `[..., 3]`."""
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def _unpack(packed: NDArray[np.int64]) -> Picture:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)
