"""What does the context carry? Regressions from contexts to the true state and the reward, beside baselines."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.data_record import read_data_record, write_data_record
from perceiver_obs.devices import choose_device
from perceiver_obs.evaluation.features import (
    FeatureMaker,
    context_features,
    pca_features,
    random_model,
    standardised_random_model,
)
from perceiver_obs.evaluation.probe_data import ON_POLICY, EpisodeList, ProbeTask, probe_tasks
from perceiver_obs.evaluation.probe_report import (
    coordinate_tables,
    markdown,
    print_tables,
    probe_section,
    summary_tables,
    verdict,
)
from perceiver_obs.evaluation.regression import ProbeResult, Score, mlp, ridge, score
from perceiver_obs.evaluation.settings import ProbeSettings
from perceiver_obs.evaluation.supervision import supervised_model, supervision_settings
from perceiver_obs.files import write_atomic
from perceiver_obs.frame_contract import warn_of_unfamiliar_frames
from perceiver_obs.hub import find_pretrained
from perceiver_obs.reporting.sections import save_section

LEAST_TESTED = 200  # frames of a set; with fewer a note is given
MIN_RELATIVE_DEVIATION = 0.1  # of the deviation in exploration; below, R² says little of what a policy needs


def probe(settings: ProbeSettings) -> list[ProbeResult]:
    """Fits regressions on the training episodes of a task's sets together and tests them on each set's test episodes.

    One regression for both sets, since a policy has but one: on-policy states get no decoder of their own. States,
    where they were recorded, are regressed in the coordinates of `perceiver_obs.data.state_coordinates`, rewards as
    `perceiver_obs.evaluation.targets` reads them. A coordinate that varies on the test episodes less than a tenth as
    much as in exploration has no R², and no part in the means: see its error.

    Raises ValueError if datasets do not fit together or the probe (`probe_tasks`), FileNotFoundError for an unknown
    model.
    """
    device = choose_device(settings.device)
    model = CausalPerceiverIO.from_pretrained(settings.model)
    tasks = probe_tasks(
        settings.data, settings.on_policy, settings.held_out_fraction, settings.on_policy_fitted, settings.max_episodes
    )
    if settings.supervised_steps and (stateless := [task.name for task in tasks if task.state is None]):
        raise ValueError(f"supervised_steps needs rollouts with states, those of {', '.join(stateless)} have none")
    for dataset in dict.fromkeys(dataset for task in tasks for each in task.sets for dataset in each.datasets):
        warn_of_unfamiliar_frames([dataset.frame_contract], model)
    if settings.random_weights is not None:
        episodes = _joined(each.training for task in tasks for each in task.sets)
        untrained = standardised_random_model(model, settings.seed, episodes, device)
        untrained.save_pretrained(settings.random_weights)
        write_data_record(settings.random_weights, [])  # it has learned from nothing
    results: list[ProbeResult] = []
    for task in tasks:
        for name, make in _features(model, task, settings, device):
            results += _probe_features(name, make, task, settings)
    _write(settings, results, tasks)
    # What a killed probe would have gone on from.
    shutil.rmtree(_supervision_directory(settings), ignore_errors=True)
    return results


def _features(
    model: CausalPerceiverIO, task: ProbeTask, settings: ProbeSettings, device: torch.device
) -> Iterator[tuple[str, FeatureMaker]]:
    yield "context", context_features(model, device, f"{task.name}: contexts")
    if settings.baselines:
        training = _joined(each.training for each in task.sets)
        yield "PCA of 3 frames", pca_features(training, model.context_dim, settings.seed)
        untrained = random_model(model, settings.seed)
        yield "random weights", context_features(untrained, device, f"{task.name}: contexts of random weights")
    if settings.supervised_steps:
        run_settings = supervision_settings(
            (*settings.data, *settings.on_policy),
            _supervision_directory(settings),
            settings.supervised_steps,
            settings.supervised_batch,
            settings.seed,
            device,
        )
        print(f"{task.name}: supervision on the state, {settings.supervised_steps:,} steps")
        supervised = supervised_model(model, task, run_settings)
        yield "supervised", context_features(supervised, device, f"{task.name}: contexts after supervision")


def _probe_features(name: str, make: FeatureMaker, task: ProbeTask, settings: ProbeSettings) -> list[ProbeResult]:
    parts = [
        _joined(each.training for each in task.sets),
        _joined(each.validation for each in task.sets),
        *(each.test for each in task.sets),
    ]
    made = iter(make(_joined(parts)))
    features = [np.concatenate([next(made) for _ in range(len(part))]).astype(np.float64) for part in parts]
    scores: dict[tuple[str, str], dict[str, Score]] = {}
    for targets in task.targets:
        values = [np.concatenate([targets.read(episode) for episode in part]) for part in parts]
        known = [np.isfinite(each).all(axis=1) for each in values]
        x, y = ([each[rows] for each, rows in zip(arrays, known)] for arrays in (features, values))
        if not all(map(len, y)):  # as of episodes of one step, which have no reward before and after
            continue
        predictions = {"ridge": ridge(x[0], y[0], x[1], y[1], x[2:])}
        if settings.mlp:
            predictions["MLP"] = mlp(x[0], y[0], x[1], y[1], x[2:], settings.seed)
        least = MIN_RELATIVE_DEVIATION * y[2].std(axis=0)
        names = [coordinate.name for coordinate in targets.coordinates]
        for regression, of_sets in predictions.items():
            for each, true, predicted in zip(task.sets, y[2:], of_sets):
                of_set = scores.setdefault((each.name, regression), {})
                of_set |= zip(names, score(true, predicted, least))
    if not scores:
        raise ValueError(f"the episodes of {task.name} have neither states nor two rewards in a row")
    return [ProbeResult(task.name, episodes, name, regression, of) for (episodes, regression), of in scores.items()]


def _joined(lists: Iterable[EpisodeList]) -> EpisodeList:
    return EpisodeList(place for each in lists for place in each.places)


def _supervision_directory(settings: ProbeSettings) -> Path:
    return Path(settings.out) / "supervised"


def _write(settings: ProbeSettings, results: Sequence[ProbeResult], tasks: Sequence[ProbeTask]) -> None:
    out = Path(settings.out)
    content = {
        "settings": asdict(settings),
        "min_relative_deviation": MIN_RELATIVE_DEVIATION,
        "tasks": {task.name: _describe(task) for task in tasks},
        "results": [
            {**asdict(result), "scores": {name: _plain(each) for name, each in result.scores.items()}}
            for result in results
        ],
    }
    summary, each_coordinate = summary_tables(results, tasks), coordinate_tables(results, tasks)
    notes = _notes(settings, tasks)
    tables = [*summary, *each_coordinate]
    write_atomic(out / "probe.json", json.dumps(content, indent=1).encode())
    write_atomic(out / "probe.md", markdown(tables).encode())
    longer = (
        f"perceiver-obs train-predictor --begin-with {settings.model} --data {' '.join(settings.data)} "
        f"--out {out.parent / (Path(settings.model).name + '-longer')}"
    )
    save_section(out, probe_section(settings.model, results, tables, notes, longer))
    print_tables(tables if len(tasks) == 1 else summary)
    said = [f"probe: {sentence}"] if (sentence := verdict(results)) else []
    files = f"probe: {out / 'probe.json'}, {out / 'probe.md'}; report: {out / 'report.html'}"
    print(*notes, *said, files, sep="\n")


def _plain(of_dimension: Score) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: None if np.isnan(value) else value for name, value in asdict(of_dimension).items()}


def _describe(task: ProbeTask) -> dict[str, Any]:
    """The coordinates, and the datasets, episodes and frames that were fitted and tested on."""
    sets = {}
    for each in task.sets:
        parts = {"training": each.training, "validation": each.validation, "test": each.test}
        sets[each.name] = {
            "datasets": [str(dataset.path) for dataset in each.datasets],
            **{name: {"episodes": len(part), "frames": sum(part.lengths)} for name, part in parts.items()},
        }
    return {"coordinates": [asdict(coordinate) for coordinate in task.coordinates], "sets": sets}


def _notes(settings: ProbeSettings, tasks: Sequence[ProbeTask]) -> list[str]:
    """Which sets are too small to judge by, and which on-policy episodes are not new to the model, by its record."""
    small = [
        f"{task.name}, {each.name}: tested on {frames} frames alone, too few to judge by; collect more episodes."
        for task in tasks
        for each in task.sets
        if (frames := sum(each.test.lengths)) < LEAST_TESTED
    ]
    record = read_data_record(find_pretrained(settings.model)) or []
    seen = {entry["fingerprint"] for entry in record}
    return small + [
        f"The model was trained on {dataset.path}: its figures on-policy are not those of new episodes."
        for task in tasks
        for each in task.sets
        if each.name == ON_POLICY
        for dataset in each.datasets
        if dataset.fingerprint in seen
    ]
