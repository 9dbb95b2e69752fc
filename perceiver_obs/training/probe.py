"""Does the context carry the state? Regressions from contexts to the true state, beside baselines."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.rollouts import Episode, RolloutDataset
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.devices import choose_device
from perceiver_obs.training.datasets import split_episodes
from perceiver_obs.training.files import write_atomically
from perceiver_obs.training.probe_features import (
    FeatureMaker,
    context_features,
    pca_features,
    random_model,
    supervised_model,
)
from perceiver_obs.training.probe_regression import ProbeResult, mlp, ridge, score
from perceiver_obs.training.probe_report import print_table, probe_section
from perceiver_obs.training.report import save_section

VALIDATION_FRACTION = 0.2
HARDLY = 0.1  # of its deviation in exploration: a dimension that varies less is not judged by its R²


@dataclass
class ProbeSettings:
    """Measure how much of the true state a model's contexts carry, on episodes held out from training."""

    model: str = "runs/predictor"
    """Directory, bundled name or hub id of the model."""
    data: str = "runs/data"
    """Exploration: rollouts with states, as the model was trained on."""
    on_policy: str | None = None
    """Rollouts with states of a competent policy on the same task: calm, upright, near the goal."""
    out: str = "runs/probe"
    """Directory for probe.json, the picture and a report."""
    held_out_fraction: float = 0.1
    """Share of the episodes to test on; the same as in training, so that the model has not seen them either."""
    max_episodes: int = 100
    """Read at most so many training episodes, and a quarter as many held-out ones, of each dataset."""
    mlp: bool = True
    """Fit a small network beside the ridge regression."""
    baselines: bool = True
    """Probe PCA of three stacked frames and a model with random weights as well."""
    supervised_steps: int = 0
    """Train a copy of the model to tell the state for so many steps and probe it too: what the pixels hold.
    It takes minutes; 0 leaves it out."""
    seed: int = 0
    """Seed of the baselines and of the network."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        if self.max_episodes < 3:
            raise ValueError(f"max_episodes must be at least 3, got {self.max_episodes}")
        if self.supervised_steps < 0:
            raise ValueError(f"supervised_steps must not be negative, got {self.supervised_steps}")


@dataclass(frozen=True)
class ProbeSet:
    """Episodes of one kind: to fit on, to choose penalties on, and to test on."""

    name: str
    training: Sequence[Episode]
    validation: Sequence[Episode]
    test: Sequence[Episode]


def probe(settings: ProbeSettings) -> list[ProbeResult]:
    """Fits regressions on the training episodes of all sets together and tests them on each set's held-out ones.

    One regression for all sets, since a policy has but one: on-policy states get no decoder of their own. A dimension
    that the policy holds nearly still, at less than a tenth of its deviation in exploration, has no R² there: see its
    error.

    Raises ValueError if a dataset holds no states or too few episodes, FileNotFoundError for an unknown model.
    """
    device = choose_device(settings.device)
    model = CausalPerceiverIO.from_pretrained(settings.model)
    paths = {"exploration": settings.data} | ({"on-policy": settings.on_policy} if settings.on_policy else {})
    datasets = {name: _dataset_with_states(path) for name, path in paths.items()}
    names = [dataset.meta["state_names"] for dataset in datasets.values()]
    if any(each != names[0] for each in names):
        raise ValueError(f"{settings.data} and {settings.on_policy} hold states of different kinds")
    sets = [_split(name, dataset, settings) for name, dataset in datasets.items()]
    makers = {"context": context_features(model, device, "contexts")}
    if settings.baselines:
        training = [episode for each in sets for episode in each.training]
        makers["PCA of 3 frames"] = pca_features(training, model.context_dim, settings.seed)
        untrained = random_model(model, settings.seed)
        makers["random weights"] = context_features(untrained, device, "contexts of random weights")
    if settings.supervised_steps:
        dataset = datasets["exploration"]
        episodes = split_episodes(dataset, settings.held_out_fraction)[0]
        taught = supervised_model(model, dataset, episodes, settings.supervised_steps, device, settings.seed)
        makers["supervised"] = context_features(taught, device, "contexts after supervision")
    results: list[ProbeResult] = []
    for name, make in makers.items():
        results += _probe_features(name, make, sets, names[0], settings)
    _write(settings, results, sets)
    return results


def _dataset_with_states(path: str) -> RolloutDataset:
    dataset = RolloutDataset(path)
    if not dataset.meta["state_names"]:
        raise ValueError(f"{path} was collected without states; collect it with states to probe it")
    return dataset


def _split(name: str, dataset: RolloutDataset, settings: ProbeSettings) -> ProbeSet:
    fitting, test = split_episodes(dataset, settings.held_out_fraction)
    if len(fitting) < 2:
        raise ValueError(f"{dataset.path} holds {len(dataset)} episodes; probing takes at least 3")
    fitting = fitting[: settings.max_episodes]
    num_validation = max(1, round(VALIDATION_FRACTION * len(fitting)))
    chosen = (fitting[num_validation:], fitting[:num_validation], test[: max(1, settings.max_episodes // 4)])
    return ProbeSet(name, *([dataset[i] for i in indices] for indices in chosen))


def _probe_features(
    name: str, make: FeatureMaker, sets: Sequence[ProbeSet], state_names: Sequence[str], settings: ProbeSettings
) -> list[ProbeResult]:
    parts = [
        [episode for each in sets for episode in each.training],
        [episode for each in sets for episode in each.validation],
        *(each.test for each in sets),
    ]
    features = iter(make([episode for part in parts for episode in part]))
    x = [np.concatenate([next(features) for _ in part]).astype(np.float64) for part in parts]
    y = [np.concatenate([_states(episode) for episode in part]) for part in parts]
    predictions = {"ridge": ridge(x[0], y[0], x[1], y[1], x[2:])}
    if settings.mlp:
        predictions["MLP"] = mlp(x[0], y[0], x[1], y[1], x[2:], settings.seed)
    least = HARDLY * y[2].std(axis=0)
    return [
        ProbeResult(name, regression, each.name, dict(zip(state_names, score(states, predicted, least))))
        for regression, of_sets in predictions.items()
        for each, states, predicted in zip(sets, y[2:], of_sets)
    ]


def _states(episode: Episode) -> NDArray[np.float64]:
    return np.asarray(episode.states, np.float64)


def _write(settings: ProbeSettings, results: Sequence[ProbeResult], sets: Sequence[ProbeSet]) -> None:
    out = Path(settings.out)
    test_frames = {each.name: sum(len(e.pixels) for e in each.test) for each in sets}
    content = {"settings": asdict(settings), "test_frames": test_frames, "results": [asdict(r) for r in results]}
    write_atomically(out / "probe.json", json.dumps(content, indent=1).encode())
    print_table(results)
    save_section(out, probe_section(settings.model, results, test_frames))
    print(f"probe: {out / 'probe.json'}; report: {out / 'report.html'}")
