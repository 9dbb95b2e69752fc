"""Figures of merit: reconstruction quality, code usage, and how well next tokens are predicted."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error over values in [0, 1]."""
    return -10 * float(np.log10(max(squared_error, 1e-10)))


def to_uint8(video: Tensor) -> NDArray[np.uint8]:
    """Frames `[..., C, H, W]` in [0, 1] as pictures uint8 `[..., H, W, C]`."""
    return (video.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()


def count_codes(tokens: NDArray, num_codes: int) -> NDArray[np.int64]:
    """How often each code occurs in each codebook: `[Q, num_codes]` from tokens `[..., Q]`."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    return np.stack([np.bincount(flat[:, q], minlength=num_codes) for q in range(flat.shape[1])])


def used_share(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the codes of each codebook that occur at all, `[Q]`."""
    return (counts > 0).mean(axis=1)


class NextTokenBaselines:
    """Forecasts of the next frame's tokens that a model must beat.

    `copy` repeats the last frame, `unigram` always says what is most frequent at a place, `bigram` says what most
    often follows the token that is there now, and `change` what follows it most often of all other tokens.

    Args:
        num_codes: codes of each codebook.
    """

    def __init__(self, num_codes: int):
        self.num_codes = num_codes
        self._places: NDArray[np.int64] | None = None
        self._pairs: NDArray[np.int64] | None = None

    def fit(self, tokens: NDArray) -> None:
        """Adds the tokens `[T, h, w, Q]` of one episode to the counts."""
        tokens = tokens.astype(np.int64)
        _, height, width, books = tokens.shape
        if self._places is None or self._pairs is None:
            self._places = np.zeros((height, width, books, self.num_codes), np.int64)
            self._pairs = np.zeros((books, self.num_codes, self.num_codes), np.int64)
        h, w, q = np.indices((height, width, books))
        for frame in tokens:
            self._places[h, w, q, frame] += 1
        for book in range(books):
            pair = tokens[:-1, ..., book] * self.num_codes + tokens[1:, ..., book]
            self._pairs[book] += np.bincount(pair.ravel(), minlength=self.num_codes**2).reshape(
                self.num_codes, self.num_codes
            )

    def forecast(self, tokens: NDArray) -> dict[str, NDArray[np.int64]]:
        """For tokens `[..., h, w, Q]` of a frame, each baseline's forecast of the next one's."""
        if self._places is None or self._pairs is None:
            raise RuntimeError("NextTokenBaselines.forecast was called before fit")
        tokens = tokens.astype(np.int64)
        books = np.arange(tokens.shape[-1])
        others = np.where(np.eye(self.num_codes, dtype=bool), -1, self._pairs)
        return {
            "copy": tokens,
            "unigram": np.broadcast_to(self._places.argmax(-1), tokens.shape),
            "bigram": self._pairs.argmax(-1)[books, tokens],
            "change": others.argmax(-1)[books, tokens],
        }


def token_accuracies(forecasts: dict[str, NDArray], current: NDArray, following: NDArray) -> dict[str, float]:
    """Share of tokens `[..., Q]` predicted, by forecast.

    `NAME` is over all tokens, `NAME_moving` over all at places where any of the Q changes from the current frame to
    the following, and `NAME_changing` over those that change themselves. The last two are left out where none does.
    """
    changes = current != following
    moves = np.broadcast_to(changes.any(axis=-1, keepdims=True), changes.shape)
    kinds = {"": np.ones_like(changes), "_moving": moves, "_changing": changes}
    return {
        name + kind: float((forecast == following)[which].mean())
        for name, forecast in forecasts.items()
        for kind, which in kinds.items()
        if which.any()
    }
