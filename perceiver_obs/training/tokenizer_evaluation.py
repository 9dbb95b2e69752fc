"""How held-out frames come out of their tokens, in numbers and pictures."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.reporting import plots
from perceiver_obs.reporting.metrics import curve, read_lines
from perceiver_obs.reporting.page import Figure, Section
from perceiver_obs.reporting.sections import curve_figures
from perceiver_obs.tokenizer import VQPTTokenizer
from perceiver_obs.training.checkpoint import RunDirectory
from perceiver_obs.training.loop import Outcome
from perceiver_obs.training.quality import count_codes, psnr, to_uint8, used_share

CLIPS_AT_ONCE = 16
PICTURED_FRAMES = 10


@dataclass(frozen=True)
class HeldOutReconstruction:
    """Quality on held-out clips.

    Attributes:
        psnr: over all pixels, in dB.
        foreground_psnr: over pixels that differ from their episode's median frame, in dB.
        code_counts: how often each code occurs, `[Q, num_codes]`.
        originals, decoded: some of the frames, uint8 `[N, H, W, C]`.
    """

    psnr: float
    foreground_psnr: float
    code_counts: NDArray[np.int64]
    originals: NDArray[np.uint8]
    decoded: NDArray[np.uint8]


@torch.no_grad()
def reconstruct_held_out(
    tokenizer: VQPTTokenizer, held_out: RolloutClips, num_clips: int, device: torch.device
) -> HeldOutReconstruction:
    """Decodes the tokens of held-out clips, the same ones every time."""
    places = held_out.index.draw(num_clips, seed=0, step=0)
    counts: list[NDArray[np.int64]] = []
    originals, decoded = [], []
    error_sum = foreground_error_sum = foreground_sum = num_values = 0.0
    for start in range(0, num_clips, CLIPS_AT_ONCE):
        chunk = places[start : start + CLIPS_AT_ONCE]
        frames = held_out.frames(chunk)
        video = torch.from_numpy(frames).to(device)
        tokens = tokenizer.encode(video)[0]
        reconstruction = tokenizer.decode(tokens, num_frames=video.shape[1])
        error = (reconstruction - video.float() / 255).square().mean(dim=2, keepdim=True).cpu().numpy()
        foreground = held_out.foreground(chunk, frames)
        error_sum += float(error.sum())
        num_values += error.size
        foreground_error_sum += float((error * foreground).sum())
        foreground_sum += float(foreground.sum())
        counts.append(count_codes(tokenizer.unpack(tokens).cpu().numpy(), tokenizer.num_codes))
        originals.append(frames[:, -1].transpose(0, 2, 3, 1))
        decoded.append(to_uint8(reconstruction[:, -1]))
    return HeldOutReconstruction(
        psnr=psnr(error_sum / num_values),
        foreground_psnr=psnr(foreground_error_sum / max(foreground_sum, 1.0)),
        code_counts=np.sum(counts, axis=0),
        originals=np.concatenate(originals)[:PICTURED_FRAMES],
        decoded=np.concatenate(decoded)[:PICTURED_FRAMES],
    )


def tokenizer_section(
    run: RunDirectory, outcome: Outcome, tokenizer: VQPTTokenizer, held_out: HeldOutReconstruction
) -> Section:
    """What a tokenizer's run has to show."""
    rows = read_lines(run.metrics)
    num_books = len(held_out.code_counts)
    panels = {
        "training loss": {"total": curve(rows, "train/loss")},
        "held-out PSNR (dB)": {
            "all pixels": curve(rows, "evaluation/psnr"),
            "moving pixels": curve(rows, "evaluation/foreground_psnr"),
        },
        "share of codes in use, held out": {
            f"codebook {book}": curve(rows, f"evaluation/codes_used_{book}") for book in range(1, num_books + 1)
        },
    }
    facts = {
        "held-out PSNR": f"{held_out.psnr:.1f} dB",
        "on moving pixels": f"{held_out.foreground_psnr:.1f} dB",
        "codes in use": ", ".join(f"{share:.0%}" for share in used_share(held_out.code_counts)),
        "steps": outcome.describe(),
        "parameters": f"{sum(p.numel() for p in tokenizer.parameters()):,}",
    }
    figures = (*tokenizer_figures(held_out), *curve_figures(panels))
    return Section("Tokenizer", f"Frames to tokens and back, trained in {run.path}.", facts, figures)


def tokenizer_figures(held_out: HeldOutReconstruction) -> tuple[Figure, Figure]:
    """Reconstructions and code usage."""
    return (
        Figure(
            "reconstructions",
            "Reconstructions of held-out frames",
            "Above: rendered frames that were not trained on. Below: what the decoder makes of their tokens.",
            plots.reconstructions(held_out.originals, held_out.decoded),
        ),
        Figure(
            "code_usage",
            "Code usage",
            "Over held-out clips. A curve that reaches the right edge means that every code earns its place.",
            plots.code_usage(held_out.code_counts),
        ),
    )
