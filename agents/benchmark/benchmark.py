"""`benchmark`: contexts beside their baselines on a suite or in one environment, run by run, resumable at any time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from functools import cache

from agents.benchmark.estimates import check_rliable
from agents.benchmark.features import BenchmarkFeatures
from agents.benchmark.report import write_report
from agents.benchmark.results import Results, find_runs, read_run
from agents.benchmark.settings import BenchmarkSettings
from agents.benchmark.suite import METHODS, OF_THE_SUITE, Protocol, RunKey
from agents.policies.frozen_perceiver import check_fingerprint
from agents.training.policy_files import Checkpoints, RunInUse
from agents.training.train_policy import train_policy
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.settings import near_matches


def benchmark(settings: BenchmarkSettings) -> Results:
    """Trains what is missing, one run after the other, and brings the results up to date after each.

    Killed at any moment, it goes on from the last checkpoint when called again; a run that another process is
    training is left to that.

    Raises:
        ValueError: an unknown task or method, a run in the directory with other settings, a results file of another
            protocol, or nothing to report.
        WrongPerceiver: a run in the directory is on another model's contexts.
        FileNotFoundError: no such model or rollouts.
        RuntimeError: rliable is not installed.
    """
    settings = settings.placed()
    _check(settings)
    if not settings.report_only:
        keys = _plan(settings)
        features = BenchmarkFeatures(
            settings.model,
            settings.data,
            settings.out,
            settings.device,
            settings.progress_bar,
            settings,
            settings.privileged_model,
        )
        _check_features(settings, keys, features)
        for number, key in enumerate(keys, start=1):
            print(f"benchmark: run {number} of {len(keys)} ({key}): ", end="", flush=True)
            if _run(settings, key, features):
                _update(settings)
    results = _update(settings)
    print(f"benchmark: {len(results.runs)} finished runs in {settings.results}; page in {settings.docs}")
    return results


def _check(settings: BenchmarkSettings) -> None:
    if settings.env is None:
        check_rliable()
        for name in {field.name for field in fields(Protocol)} - OF_THE_SUITE:
            if getattr(settings, name) != getattr(Protocol, name):
                raise ValueError(f"{name} works with --env only, got {getattr(settings, name)!r}")
    choices: dict[str, tuple[Sequence, Collection]] = {
        "task": (settings.tasks, settings.known_tasks),
        "method": (settings.methods, METHODS),
    }
    for kind, (chosen, known) in choices.items():
        if not chosen:
            raise ValueError(f"no {kind} was chosen; known are {', '.join(known)}")
        for name in chosen:
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r} of {settings.name}; {near_matches(name, known)}")
    if not settings.seeds or min(settings.seeds) < 0:
        raise ValueError(f"seeds must be one or more numbers from 0 up, got {settings.seeds}")
    Results.load(settings.results, settings.name, settings)


def _check_features(settings: BenchmarkSettings, keys: Sequence[RunKey], features: BenchmarkFeatures) -> None:
    """Finds out before hours of training whether models and rollouts will do."""
    fingerprints: dict[str | None, Callable[[], str]] = {
        "context": lambda: features.perceiver.fingerprint,
        "privileged": cache(lambda: CausalPerceiverIO.from_pretrained(features.privileged_model).fingerprint),
    }
    for key in keys:
        kind = METHODS[key.method].features
        if kind in fingerprints:
            fingerprint = fingerprints[kind]()
            if run := read_run(settings.out, key, settings):
                check_fingerprint(fingerprint, run.fingerprint, f"the run {key} in {settings.out}")
        if METHODS[key.method].adapts or kind not in (None, *fingerprints):
            features.given_rollouts(key.task)


def _plan(settings: BenchmarkSettings) -> list[RunKey]:
    """All runs in an order that gives something to compare early: by seed, task, method."""
    left_out = {name: why for name, why in settings.left_out.items() if name in settings.methods}
    for name, why in left_out.items():
        print(f"benchmark: method {name!r} is left out of {settings.name}: {why}")
    methods = [name for name in METHODS if name in settings.methods and name not in left_out]
    return [RunKey(method, task, seed) for seed in settings.seeds for task in settings.tasks for method in methods]


def _run(settings: BenchmarkSettings, key: RunKey, features: BenchmarkFeatures) -> bool:
    """Trains one run to its end; False where there was nothing to do."""
    before = read_run(settings.out, key, settings)
    if before and before.ended:
        print("finished")
        return False
    print(f"resuming after {before.frames:,} frames" if before else "training")
    changes = {"out": key.directory(settings.out), "device": settings.device, "progress_bar": settings.progress_bar}
    if kind := METHODS[key.method].features:
        changes["model"] = getattr(features, kind)(key.task, key.seed)
    if METHODS[key.method].adapts:
        changes["adapt_data"] = tuple(str(dataset.path) for dataset in features.rollouts(key.task))
    try:
        train_policy(settings.run(key.method, key.task, key.seed, **changes))
    except RunInUse as error:
        print(f"benchmark: left out, {error}")
        return False
    Checkpoints(key.directory(settings.out) / "checkpoints").drop_replay_buffers()
    return True


def _update(settings: BenchmarkSettings) -> Results:
    """Gathers all runs there are, and writes results and page."""
    earlier = Results.load(settings.results, settings.name, settings)
    results = earlier.merge(find_runs(settings.out, settings))
    if not results.runs:
        raise ValueError(f"nothing to report: no finished run in {settings.out} or {settings.results}")
    results.save(settings.results)
    write_report(results, settings.docs, settings.results)
    return results
