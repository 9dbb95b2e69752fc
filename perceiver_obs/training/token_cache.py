"""Episodes as a trained tokenizer sees them, computed once and kept in files for training the predictor."""

import hashlib
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from perceiver_obs.data.clips import ClipPlace
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.files import write_atomic
from perceiver_obs.tokenizer import VQPTTokenizer
from perceiver_obs.training.checkpoint import state_digest

FORMAT_VERSION = 1
FRAMES_AT_ONCE = 64
OPEN_EPISODES = 128
STATISTICS_EPISODES, FEW_EPISODES = 100, 4

Codes = tuple[NDArray[np.float16], NDArray[np.uint16]]
"""Code vectors and tokens of an episode."""


class TokenCache:
    """Code vectors and tokens of the episodes of several datasets, in `NNNNNN.vectors.npy` and `.tokens.npy`.

    An episode is encoded when it is first asked for; `fill` encodes all beforehand.

    Vectors are float16 `[T + 1, h, w, code_dim]`, tokens uint16 `[T + 1, h, w, Q]`. Each dataset's files lie in a
    folder named after the tokenizer's weights and the data, so another tokenizer or other data never meet them.

    Args:
        path: directory of the cache.
        tokenizer: the trained tokenizer. ValueError if it halves the frame rate.
        datasets: what to encode.
    """

    def __init__(self, path: str | Path, tokenizer: VQPTTokenizer, datasets: Sequence[RolloutDataset]):
        if tokenizer.temporal_downsample:
            raise ValueError("a tokenizer with temporal_downsample cannot be streamed; train one without it")
        if tokenizer.num_codes > 2**16:
            raise ValueError(f"the cache holds tokens as uint16, too few for {tokenizer.num_codes} codes")
        self._tokenizer = tokenizer
        self._datasets = datasets
        weights = state_digest(tokenizer)
        self._folders = [Path(path) / _key(weights, dataset) for dataset in datasets]
        self._open = lru_cache(OPEN_EPISODES)(self._load)

    def fill(self, accelerator: Accelerator) -> None:
        """Encodes the episodes that are not there yet, shared out among the processes."""
        every = [(number, episode) for number, each in enumerate(self._datasets) for episode in range(len(each))]
        # Shared out before looking at the disk, which the other processes are writing to.
        mine = every[accelerator.process_index :: accelerator.num_processes]
        missing = [place for place in mine if not self._file(*place, "tokens").exists()]
        self._tokenizer.to(accelerator.device)
        shown = accelerator.is_main_process and bool(missing)
        for dataset, episode in tqdm(missing, "encoding episodes", unit="episode", disable=not shown):
            self._encode(dataset, episode)
        self._tokenizer.cpu()
        accelerator.wait_for_everyone()

    def _encode(self, dataset: int, episode: int) -> None:
        self._tokenizer.eval()
        vectors, tokens = encode_frames(self._tokenizer, self._datasets[dataset][episode].pixels)
        self._write(dataset, episode, "vectors", vectors)
        self._write(dataset, episode, "tokens", tokens)  # last: its presence means that both are whole

    def vectors(self, dataset: int, episode: int) -> NDArray[np.float16]:
        """Code vectors of an episode's frames before quantisation, `[T + 1, h, w, code_dim]`."""
        return self._open(dataset, episode)[0]

    def tokens(self, dataset: int, episode: int) -> NDArray[np.uint16]:
        """Tokens of an episode's frames, `[T + 1, h, w, Q]`."""
        return self._open(dataset, episode)[1]

    def clips(self, places: Sequence[ClipPlace], length: int) -> tuple[Tensor, Tensor]:
        """`clip_codes` of clips of `length` frames."""
        return clip_codes([self._open(p.dataset, p.episode) for p in places], places, length)

    def statistics(self, episodes: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Mean `[h, w, code_dim]` and standard deviation around it `[code_dim]` of the frames of chosen episodes.

        `STATISTICS_EPISODES` are read, evenly spread over each dataset, and a few of each at least.
        """
        of_each = max(FEW_EPISODES, STATISTICS_EPISODES // len(episodes))
        count, total, squares = 0, np.float64(0), np.float64(0)
        for dataset, chosen in enumerate(episodes):
            for episode in chosen[:: -(-len(chosen) // of_each)]:
                vectors = self.vectors(dataset, episode).astype(np.float64)
                count += len(vectors)
                total = total + vectors.sum(axis=0)
                squares = squares + np.square(vectors).sum(axis=0)
        mean = total / count
        variance = np.maximum(squares / count - np.square(mean), 0).mean(axis=(0, 1))
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(np.sqrt(variance), dtype=torch.float32)

    def _file(self, dataset: int, episode: int, kind: str) -> Path:
        return self._folders[dataset] / f"{episode:06d}.{kind}.npy"

    def _write(self, dataset: int, episode: int, kind: str, array: NDArray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_atomic(self._file(dataset, episode, kind), buffer.getvalue())

    def _load(self, dataset: int, episode: int) -> Codes:
        files = [self._file(dataset, episode, kind) for kind in ("vectors", "tokens")]
        if not files[-1].exists():
            self._encode(dataset, episode)
        vectors, tokens = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
        return vectors, tokens


def clip_codes(codes: Sequence[Codes], places: Sequence[ClipPlace], length: int) -> tuple[Tensor, Tensor]:
    """Vectors float32 `[B, T, h, w, code_dim]` and tokens int64 `[B, T, h, w, Q]` of clips.

    The codebook axis is left out if there is but one, as the tokenizer does.

    Args:
        codes: of the episode of each clip.
        places: where the clips lie.
        length: frames of a clip.
    """
    spans = [slice(place.start, place.start + length) for place in places]
    vectors = np.stack([of[span] for (of, _), span in zip(codes, spans)]).astype(np.float32)
    tokens = np.stack([of[span] for (_, of), span in zip(codes, spans)]).astype(np.int64)
    if tokens.shape[-1] == 1:
        tokens = tokens[..., 0]
    return torch.from_numpy(vectors), torch.from_numpy(tokens)


@torch.no_grad()
def encode_frames(tokenizer: VQPTTokenizer, pixels: NDArray[np.uint8]) -> Codes:
    """Code vectors `[T, h, w, code_dim]` and tokens `[T, h, w, Q]` of an episode's frames `[T, H, W, C]`."""
    device = next(tokenizer.parameters()).device
    past, vectors, tokens = None, [], []
    for start in range(0, len(pixels), FRAMES_AT_ONCE):
        frames = np.ascontiguousarray(pixels[start : start + FRAMES_AT_ONCE].transpose(0, 3, 1, 2))
        chunk, past = tokenizer.stream_vectors(torch.from_numpy(frames)[None].to(device), past)
        vectors.append(chunk[0].half().cpu().numpy())
        tokens.append(tokenizer.unpack(tokenizer.quantize(chunk)[1])[0].cpu().numpy().astype(np.uint16))
    return np.concatenate(vectors), np.concatenate(tokens)


def _key(weights: str, dataset: RolloutDataset) -> str:
    parts = json.dumps([FORMAT_VERSION, weights, dataset.fingerprint])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
