"""How well a predictor predicts held-out episodes: next tokens beside baselines, and the future as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.reporting import plots
from perceiver_obs.reporting.metrics import curve, read_lines
from perceiver_obs.reporting.page import Comparison, Figure, Section
from perceiver_obs.reporting.sections import curve_figures
from perceiver_obs.training.checkpoint import RunDirectory
from perceiver_obs.training.loop import Outcome, seed_step
from perceiver_obs.training.quality import NextTokenBaselines, psnr, to_uint8, token_accuracies, used_share
from perceiver_obs.training.token_cache import TokenCache
from perceiver_obs.training.tokenizer_evaluation import reconstruct_held_out, tokenizer_figures

CLIPS_AT_ONCE = 16
LONGER = 10  # times the steps, where a baseline predicts better
GOAL_CLIPS = 16
STRIPS = 3
STRIP_FRAMES = 16
BASELINE_EPISODES = 200
FORECASTS = {
    "model": "model",
    "copy": "copy last frame",
    "bigram": "bigram",
    "unigram": "unigram",
    "change": "bigram, given that it changes",
}
KINDS = {"": "all tokens", "_moving": "where something moves", "_changing": "tokens that change"}


@dataclass(frozen=True)
class Continuation:
    """Frames uint8 `[T, H, W, C]` of an episode, and what the model made of all but the first few."""

    happened: NDArray[np.uint8]
    predicted: NDArray[np.uint8]

    @property
    def num_context_frames(self) -> int:
        return len(self.happened) - len(self.predicted)


class PredictorEvaluation:
    """Looks at a model with held-out clips that are the same every time.

    Args:
        model: the model, in training.
        cache: code vectors and tokens of all episodes.
        clips: the training clips, which the baselines are counted on.
        held_out: the clips to evaluate on.
        num_clips: how many of them.
        shows_tokenizer: whether the section has its reconstructions and code usage too, as no run of its own does.
        has_goals: whether it was trained to predict towards goals.
    """

    def __init__(
        self,
        model: CausalPerceiverIO,
        cache: TokenCache,
        clips: RolloutClips,
        held_out: RolloutClips,
        num_clips: int,
        shows_tokenizer: bool = False,
        has_goals: bool = False,
    ):
        self.model, self.cache, self.num_clips = model, cache, num_clips
        self.shows_tokenizer, self.has_goals = shows_tokenizer, has_goals
        self.baselines = NextTokenBaselines(model.tokenizer.num_codes)
        for dataset, episodes in enumerate(clips.episodes):
            for episode in episodes[: max(1, BASELINE_EPISODES // len(clips.episodes))]:
                self.baselines.fit(cache.tokens(dataset, episode))
        shortest = min(d.lengths[e] for d, of in zip(clips.datasets, held_out.episodes) for e in of)
        self.num_seen = min(model.video_shape[0], shortest - 1)
        strip_length = min(self.num_seen + STRIP_FRAMES, shortest)
        self.clips = held_out.of_length(self.num_seen + 1)
        self.strips = held_out.of_length(strip_length)
        farthest = held_out.index.clip_length - 1  # of a goal in training
        self.goals = held_out.of_length(min(self.num_seen + farthest, strip_length))

    @torch.no_grad()
    def accuracies(self, device: torch.device) -> dict[str, float]:
        """Share of the next frame's tokens predicted, by the model and by each baseline (`token_accuracies`)."""
        places = self.clips.index.draw(self.num_clips, seed=0, step=0)
        last_two, predicted = [], []
        for start in range(0, self.num_clips, CLIPS_AT_ONCE):
            chunk = places[start : start + CLIPS_AT_ONCE]
            video = torch.from_numpy(self.clips.frames(chunk)).to(device)
            prediction = self.model(video, self.num_seen, self._actions(self.clips, chunk, device))
            predicted.append(self.model.tokenizer.unpack(prediction["predicted_tokens"])[:, 0].cpu().numpy())
            tokens = self.model.tokenizer.unpack(self.cache.clips(chunk, self.num_seen + 1)[1])
            last_two.append(tokens[:, -2:].numpy())
        current, following = np.concatenate(last_two).swapaxes(0, 1)
        forecasts = {"model": np.concatenate(predicted), **self.baselines.forecast(current)}
        return token_accuracies(forecasts, current, following)

    @torch.no_grad()
    def continuations(self, device: torch.device, count: int = STRIPS) -> list[Continuation]:
        """What the model makes of held-out clips after their first frames, given the actions that were taken."""
        places = self.strips.index.draw(count, seed=1, step=0)
        frames = self.strips.frames(places)
        seen = torch.from_numpy(frames[:, : self.num_seen]).to(device)
        seed_step(0, 0, 0)
        future = self.model.generate(
            seen, frames.shape[1] - self.num_seen, actions=self._actions(self.strips, places, device), temperature=0.0
        )
        return [Continuation(*pair) for pair in zip(frames.transpose(0, 1, 3, 4, 2), to_uint8(future))]

    @torch.no_grad()
    def towards_goals(self, device: torch.device) -> tuple[float, float]:
        """How near to its goal a continuation ends: with the goal as condition, and without. Actions are not given.

        The goal is the last frame of a held-out clip. PSNR in dB of the continuation's last frame against it, over the
        pixels in which it differs from the last frame that the model saw.
        """
        places = self.goals.index.draw(GOAL_CLIPS, seed=2, step=0)
        video = torch.from_numpy(self.goals.frames(places)).to(device)
        seen, goal = video[:, : self.num_seen], video[:, -1] / 255
        context = self.model.extract_context(video, self._actions(self.goals, places, device))[:, -1]
        moves = (video[:, -1] != seen[:, -1]).any(1, keepdim=True).expand_as(goal)
        num_frames = video.shape[1] - self.num_seen
        ends = [
            self.model.generate(seen, num_frames, temperature=0.0, condition=condition)[:, -1]
            for condition in (context, None)
        ]
        with_goal, without = (psnr(float((end - goal)[moves].square().mean())) for end in ends)
        return with_goal, without

    def _actions(self, clips: RolloutClips, places: Sequence, device: torch.device) -> Tensor | None:
        return torch.from_numpy(clips.actions(places)).to(device) if self.model.action_dim else None

    def section(self, run: RunDirectory, outcome: Outcome, device: torch.device) -> Section:
        """What the run has to show."""
        scores = self.accuracies(device)
        facts = {
            "steps": outcome.describe(),
            "context": f"{self.model.context_dim} floats from {self.model.receptive_field} frames",
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
        }
        if privileged := self.model.frame_contract.get("privileged"):
            facts["privileged"] = f"trained on the simulator {privileged} too, not on pixels alone"
        longer = (
            f"perceiver-obs train-predictor --settings {run.settings_file} --steps {LONGER * outcome.steps} "
            f"--out {run.path}-longer"
        )
        comparisons = tuple(
            Comparison(f"next tokens predicted, {group}", scores[f"model{kind}"], scores[best], label, ".1%", longer)
            for kind, group in KINDS.items()
            if f"model{kind}" in scores
            for best, label in [_best_baseline(scores, kind)]
        )
        if self.has_goals:
            name = "PSNR in dB of the last frame of a continuation against its goal"
            comparisons += (Comparison(name, *self.towards_goals(device), "without the goal", ".1f", longer),)
        figures = [
            Figure(
                f"future_{number + 1}",
                f"A predicted future ({number + 1} of {STRIPS})",
                f"A held-out episode. The model sees {strip.num_context_frames} frames, of which the last is shown, "
                "and the actions that follow; each predicted frame is fed back before the next. Where these frames are "
                "blurred or stand still, contexts may hold the motion all the same: the probe measures that.",
                plots.filmstrip(strip.happened, strip.predicted),
            )
            for number, strip in enumerate(self.continuations(device))
        ]
        if self.shows_tokenizer:
            frames = RolloutClips(self.clips.datasets, self.clips.episodes, clip_length=1)
            held_out = reconstruct_held_out(self.model.tokenizer, frames, self.num_clips, device)
            figures = [*tokenizer_figures(held_out), *figures]
            facts |= {
                "held-out PSNR of the tokenizer": f"{held_out.psnr:.1f} dB",
                "codes in use": ", ".join(f"{share:.0%}" for share in used_share(held_out.code_counts)),
            }
        figures += [
            Figure(
                "accuracy",
                "Next tokens predicted, beside baselines",
                "Share of the next frame's tokens that are exactly right: of all, of those at places where any token "
                "changes, and of those that change themselves, which copying cannot predict. The unigram knows each "
                "place's most frequent token, the bigram what most often follows the token that is there; given that "
                "it changes, what most often follows of all others.",
                plots.bars(_bar_groups(scores), "share right"),
            ),
            *curve_figures(_panels(run)),
        ]
        summary = f"Contexts that predict tokens, trained in {run.path}."
        return Section("Predictor", summary, facts, tuple(figures), comparisons=comparisons)


def _best_baseline(scores: dict[str, float], kind: str) -> tuple[str, str]:
    """The name among the scores of the baseline that predicts most, and what it is called."""
    best = max((name for name in FORECASTS if name != "model"), key=lambda name: scores[f"{name}{kind}"])
    return f"{best}{kind}", FORECASTS[best]


def _bar_groups(scores: dict[str, float]) -> dict[str, dict[str, float]]:
    return {
        group: {label: scores[name + kind] for name, label in FORECASTS.items()}
        for kind, group in KINDS.items()
        if f"model{kind}" in scores
    }


def _panels(run: RunDirectory) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    rows = read_lines(run.metrics)
    accuracy = {label: curve(rows, f"evaluation/accuracy_{name}_changing") for name, label in FORECASTS.items()}
    return {
        "loss": {"training": curve(rows, "train/loss"), "held out": curve(rows, "evaluation/loss")},
        "next tokens that change, held out": {name: line for name, line in accuracy.items() if line[0]},
        "gradient norm": {"training": curve(rows, "train/gradient_norm")},
    }
