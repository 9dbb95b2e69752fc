"""Estimates and tables by hand: no interval from one seed, no mean over tasks that were not run."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.benchmark.estimates import estimate
from agents.benchmark.report import page_text
from agents.benchmark.results import Results, RunResult
from agents.benchmark.suite import METHODS, TASKS, Protocol
from agents.benchmark.tables import aggregate_table, frames_table, returns_table
from perceiver_obs.reporting.plots import COLORS, return_curves

pytestmark = pytest.mark.usefixtures("pictures")
OFFLINE = {"control_steps": 4000, "rendered": 1010, "policies": ["random"]}


def run(method="state", task=TASKS[0], seed=0, value=500.0, offline=OFFLINE, fingerprint=None):
    """A finished run with one evaluation."""
    point = {"frames": 100_000, "mean": value, "std": 0.0, "returns": [value]}
    return RunResult(method, task, seed, {"model": "m"}, fingerprint, offline, [point], 7200.0, "2026-01-01", {})


def cells(table, first):
    """The cells of the row that begins with `first`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return next(row[1:] for row in rows if row[0] == first)


def test_interquartile_mean_is_of_the_middle_half():
    returns = np.array([[0.0, 100, 300, 500], [1000, 900, 400, 200]])
    result = estimate(returns)
    assert result.iqm == pytest.approx(np.mean([200, 300, 400, 500]) / 1000)
    assert result.mean == pytest.approx(returns.mean() / 1000)


def test_intervals_resample_the_seeds_of_each_task():
    returns = np.array([[100.0, 300], [200, 300], [300, 300]])
    result = estimate(returns)
    low, high = result.mean_interval
    # The mean of 3 draws from 100, 200, 300 has deviation 47, half of it remains beside a constant task.
    assert low == pytest.approx(0.25 - 1.96 * 0.0236, abs=0.01)
    assert high == pytest.approx(0.25 + 1.96 * 0.0236, abs=0.01)
    assert result.iqm_interval[0] < result.iqm < result.iqm_interval[1]


def test_intervals_repeat_and_leave_numpys_generator_alone():
    returns = np.random.default_rng(0).uniform(0, 1000, (3, 6))
    np.random.seed(5)  # noqa: NPY002 (the global generator is what is tested)
    first = estimate(returns)
    after = np.random.random()  # noqa: NPY002 (the global generator is what is tested)
    np.random.seed(5)  # noqa: NPY002 (the global generator is what is tested)
    assert after == np.random.random()  # noqa: NPY002 (the global generator is what is tested)
    assert estimate(returns) == first


def test_one_seed_gives_no_interval():
    result = estimate(np.full((1, 6), 700.0))
    assert (result.mean, result.mean_interval, result.iqm_interval) == (pytest.approx(0.7), None, None)


def test_returns_are_means_and_deviations_over_seeds():
    runs = [run(seed=0, value=400), run(seed=1, value=500), run(seed=2, value=600), run("pixels", value=90)]
    table = returns_table(runs)
    assert cells(table, TASKS[0]) == ["500 ± 100 (3 seeds)", "90 (1 seed)", "759"]
    assert cells(table, TASKS[1]) == ["–", "–", "601"]


def test_aggregates_say_what_they_are_from():
    everywhere = [run(task=task, seed=seed, value=100 * seed + 200) for task in TASKS for seed in (0, 2)]
    runs = [*everywhere, run(seed=5, value=999)]
    runs += [run("context", task=task, value=600) for task in TASKS]
    runs += [run("pixels", task=task) for task in TASKS[:2]]
    runs += [run("pca", task=task, seed=place) for place, task in enumerate(TASKS)]
    table = aggregate_table(runs)
    iqm, mean, source = cells(table, METHODS["state"].label)
    assert mean.startswith("0.300 [0.2")
    assert iqm.startswith("0.300 [")
    assert source == "6 tasks × 2 seeds"
    assert cells(table, METHODS["context"].label) == ["0.600", "0.600", "1 seed: no interval"]
    assert cells(table, METHODS["pixels"].label) == ["–", "–", "2 of 6 tasks: too few"]
    assert cells(table, METHODS["pca"].label) == ["–", "–", "no seed that every task has"]
    assert cells(table, "DrQ, published")[1] == "0.688"


def test_every_frame_is_shown_with_who_collected_it():
    wider = {"control_steps": 9000, "rendered": 2020, "policies": ["random", "correlated"]}
    runs = [run("pca"), run("pca", task=TASKS[1], offline=wider)]
    runs += [run("context"), run("context", seed=1, offline=None)]
    table = frames_table(runs)
    expected = ["4,000 to 9,000 offline + 100,000 online", "1,010 to 2,020", "random, correlated", "2.0"]
    assert cells(table, METHODS["pca"].label) == expected
    assert cells(table, METHODS["context"].label)[0] == "unknown offline + 100,000 online"


def test_the_page_names_the_model_and_warns_where_several_are_mixed():
    empty = Results("dmc100k", json.loads(json.dumps(Protocol().shared())))
    one = empty.merge([run("context", fingerprint="aaaa")])
    several = one.merge([run("context", seed=1, fingerprint="bbbb")])
    page = empty.merge([run()])
    assert "The contexts are those of `m` (fingerprint `aaaa`)." in page_text(one, Path("r.json"))
    of_states = one.merge([run("privileged", fingerprint="cccc")])
    assert "of the model that was trained on states are of `m` (fingerprint `cccc`)." in page_text(
        of_states, Path("r.json")
    )
    assert "those of 2 models, and their means mean little" in page_text(several, Path("r.json"))
    assert "The contexts are" not in page_text(page, Path("r.json"))


def test_curves_take_seeds_that_were_evaluated_at_other_steps():
    panels = {
        TASKS[0]: {"a": [([10, 20], [1.0, 2.0]), ([10, 21, 30], [1.0, 3.0, 4.0])]},
        TASKS[1]: {"b": [([10], [5.0])]},
    }
    png = return_curves(panels, {TASKS[0]: 759.0}, "reference")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > picture.height


def test_every_method_has_a_colour_of_its_own():
    assert len(set(COLORS)) >= len(METHODS)
