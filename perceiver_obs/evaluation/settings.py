"""Settings of `probe`."""

from dataclasses import dataclass


@dataclass
class ProbeSettings:
    """Measure how much of the true state a model's contexts carry, on episodes held out from training.

    Datasets are grouped by their tasks; each task gets regressions of its own, and the tables their mean.
    """

    model: str = "runs/predictor"
    """Bundled name or directory of the model, or "hf://owner/name" of the hub."""
    data: tuple[str, ...] = ("runs/data",)
    """Exploration: rollouts with states, as the model was trained on. One or several directories, of one or
    several tasks."""
    on_policy: tuple[str, ...] = ()
    """Rollouts with states of competent policies on the same tasks, which the model has not seen: calm, upright,
    near the goal."""
    out: str = "runs/probe"
    """Directory for probe.json, probe.md, the pictures and a report."""
    held_out_fraction: float = 0.1
    """Share of the exploration episodes to test on; the same as in training, so that the model has not seen them
    either."""
    on_policy_fitted: float = 0.65
    """Share of the on-policy episodes that the regressions are fitted on too (13 of 20); the others are tested on."""
    max_episodes: int = 400
    """Fit on at most so many episodes of each task and kind, and test on at most a quarter as many."""
    mlp: bool = True
    """Fit a small network beside the ridge regression."""
    baselines: bool = True
    """Probe PCA of three stacked frames and a model with random weights as well."""
    random_weights: str | None = None
    """Directory to keep the model with random weights in, its contexts standardised on the data, so that train-policy
    can learn on it as a baseline. None keeps none."""
    supervised_steps: int = 0
    """Train a copy of the model on the state for so many steps and probe it too: what its shape can read from
    frames. A thousand take three to six minutes of a core for each task; 0 leaves it out."""
    supervised_batch: int = 16
    """Clips in each of these steps."""
    seed: int = 0
    """Seed of the baselines, of the supervision and of the network."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        if self.max_episodes < 3:
            raise ValueError(f"max_episodes must be at least 3, got {self.max_episodes}")
        if self.supervised_steps < 0:
            raise ValueError(f"supervised_steps must not be negative, got {self.supervised_steps}")
        if self.supervised_batch < 1:
            raise ValueError(f"supervised_batch must be at least 1, got {self.supervised_batch}")
        for name in ("held_out_fraction", "on_policy_fitted"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
