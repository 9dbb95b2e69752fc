"""Reports and pictures: self-contained, escaped, and drawn from any shapes that runs produce."""

import io
import json
import re
import shlex
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agents.training.settings import EvaluateSettings, FitSettings, TrainPolicySettings
from agents.visualize.settings import WatchSettings
from perceiver_obs.reporting import plots
from perceiver_obs.reporting.page import Comparison, Figure, Page, Section, Table
from perceiver_obs.reporting.policies import load_policy_run, verdict
from perceiver_obs.reporting.report import ReportSettings, next_commands, report
from perceiver_obs.reporting.sections import curve_figures, load_section, save_section
from perceiver_obs.settings import parse_settings

pytestmark = pytest.mark.usefixtures("pictures")


def size_of(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image.size


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


SECTION = Section(
    "Tokenizer",
    "Frames <to> tokens & back.",
    {"held-out PSNR": "30.1 dB"},
    (Figure("curves", "Curves", "Over the steps.", plots.code_usage(np.array([[3, 2, 0]]))),),
    (Table("Errors <m>", ("task", "a & b"), (("walker", "1 / 2"), ("mean", "–")), "Less is better."),),
    (Comparison("R² <of> velocities", 0.11, 0.21, "random weights", ".2f", "perceiver-obs train & more"),),
)


class Structure(HTMLParser):
    """Collects tags and their links, and fails on tags that are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_holds_everything_itself_and_escapes_text():
    html = Page("A <title>", [SECTION, SECTION]).html()
    structure = Structure(html)
    assert structure.open == []
    assert len(structure.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in structure.links)
    assert "Frames <to> tokens & back." in structure.text
    assert "A <title>" in structure.text
    assert all(text in structure.text for text in ("Errors <m>", "a & b", "1 / 2", "Less is better.", "train & more"))
    assert not re.search(r"https?://", html)


@pytest.mark.parametrize(("value", "baseline", "marks"), [(0.11, 0.21, 1), (0.21, 0.21, 1), (0.3, 0.21, 0)])
def test_numbers_no_better_than_a_baseline_are_marked_with_what_to_try(value, baseline, marks):
    compared = Comparison("velocities", value, baseline, "random weights", ".2f", "perceiver-obs do-more")
    page = Page("x", [Section("Probe", "…", comparisons=(compared,))])
    html = page.html()
    assert html.count("worse than the baseline") == html.count('<div class="worse">') == marks
    assert html.count("perceiver-obs do-more") == marks
    assert f"{value:.2f} (random weights: 0.21)" in html


def test_sections_survive_their_directory(tmp_path):
    save_section(tmp_path / "run", SECTION)
    assert load_section(tmp_path / "run") == SECTION
    assert (tmp_path / "run" / "report.html").exists()


def test_sections_of_earlier_versions_load(tmp_path):
    save_section(tmp_path, SECTION)
    content = json.loads((tmp_path / "section.json").read_text())
    del content["tables"], content["comparisons"], content["verdict"]
    (tmp_path / "section.json").write_text(json.dumps(content))
    assert load_section(tmp_path) == replace(SECTION, tables=(), comparisons=())


def make_policy(directory, returns, learned_from=({"name": "data"},), **settings):
    """A directory like those of train-policy whose evaluations have these returns, of two episodes each."""
    directory.mkdir(parents=True)
    steps = range(1, len(returns) + 1)
    points = [
        {"frames": 8000 * i, "steps": 1000 * i, "mean_return": mean, "std_return": 2.0, "returns": [mean - 2, mean + 2]}
        for i, mean in zip(steps, returns)
    ]
    (directory / "curve.jsonl").write_text("".join(json.dumps({**p, "seconds": 60.0}) + "\n" for p in points))
    known = {"task": "cartpole-swingup", "env": None, "algorithm": "CrossQ", "observation": "context", **settings}
    record = {"settings": known, "offline_data": list(learned_from)}
    (directory / "policy.json").write_text(json.dumps(record))
    return directory


def test_report_of_runs_within_a_directory_is_in_order_and_begins_with_the_policy(tmp_path, capsys):
    for name, title in (("a", "Probe"), ("b", "Predictor"), ("c", "Tokenizer")):
        save_section(tmp_path / name, Section(title, "…"))
    (tmp_path / "data").mkdir()
    policy = make_policy(tmp_path / "policy", [100.0, 300.0])
    make_policy(tmp_path / "untrained", [90.0, 120.0], learned_from=())
    Image.fromarray(noise(8, 8, 3)).save(policy / "watch.gif")
    path = report(ReportSettings(out=str(tmp_path)))
    assert str(path) in capsys.readouterr().out
    html = path.read_text()
    order = ["<h1>cartpole-swingup</h1>", 'class="verdict"', "data:image/gif", "Learning curves", "<h2>Tokenizer"]
    order += ["<h2>Predictor", "<h2>Probe", "What to run next"]
    assert [html.index(each) for each in order] == sorted(html.index(each) for each in order)
    assert "300 ± 2" in html
    assert Structure(html).open == []
    chosen = report(ReportSettings(out=str(tmp_path), runs=(str(policy), str(tmp_path / "a")))).read_text()
    assert "<h2>Probe" in chosen
    assert "<h2>Tokenizer" not in chosen


@pytest.mark.parametrize(("baseline", "mark"), [(0.5, "verdict"), (0.95, "verdict worse")])
def test_without_a_policy_the_page_begins_with_what_the_probe_found(tmp_path, baseline, mark):
    compared = Comparison("rewards", 0.9, baseline, "random weights")
    save_section(tmp_path / "model", Section("Predictor", "…", comparisons=(Comparison("tokens", 0.1, 0.2, "copy"),)))
    save_section(tmp_path / "probe", Section("Probe", "…", comparisons=(compared,), verdict="Contexts beat <it>."))
    (tmp_path / "fit.json").write_text(json.dumps({"next_command": "perceiver-obs train-policy --env A-v0"}))
    html = report(ReportSettings(out=str(tmp_path))).read_text()
    assert f'<p class="{mark}">Contexts beat &lt;it&gt;.</p>' in html
    assert "perceiver-obs train-policy --env A-v0" in html


@pytest.mark.parametrize(
    ("ours", "baseline", "said"),
    [
        (600.0, 200.0, "600 ± 2 of at most 1,000, 3.0 times the 200 ± 2 from random weights."),
        (200.0, 600.0, "200 ± 2 of at most 1,000, which is no better than 600 ± 2 from random weights."),
        (201.0, 200.0, "201 ± 2 of at most 1,000, which is not clearly better than 200 ± 2 from random weights."),
        (600.0, -5.0, "600 ± 2 of at most 1,000, against -5.0 ± 2.0 from random weights."),
    ],
)
def test_verdict_follows_from_the_numbers(tmp_path, ours, baseline, said):
    runs = [make_policy(tmp_path / "b", [50.0, ours]), make_policy(tmp_path / "a", [9.0, baseline], learned_from=())]
    expected = f"In 2,000 steps (16,000 frames) CrossQ learned cartpole-swingup from contexts to a return of {said}"
    assert verdict([load_policy_run(run) for run in reversed(runs)]) == expected
    html = report(ReportSettings(out=str(tmp_path))).read_text()
    assert ('class="verdict worse"' in html) == (ours < 300)
    assert ("return of the policy" in html) == (ours < baseline)


def test_a_flat_curve_is_not_called_learning(tmp_path):
    make_policy(tmp_path / "policy", [21.0, 21.0, 22.0])
    make_policy(tmp_path / "untrained", [17.0, 17.0, 17.0], learned_from=())
    html = report(ReportSettings(out=str(tmp_path))).read_text()
    assert "nothing was learned yet of cartpole-swingup from contexts" in html
    assert 'class="verdict worse"' in html


def test_fresh_episodes_count_more_than_those_of_training(tmp_path):
    run = make_policy(tmp_path / "policy", [50.0, 600.0])
    (run / "evaluation.json").write_text(json.dumps({"returns": [500.0, 520.0]}))
    assert "510 ± 10" in verdict([load_policy_run(run)])


def test_policies_on_states_are_no_baseline_but_drawn(tmp_path):
    runs = [make_policy(tmp_path / "p", [50.0, 600.0]), make_policy(tmp_path / "s", [80.0, 700.0], observation="state")]
    assert "no baseline" in verdict([load_policy_run(run) for run in runs])
    assert "true state" in report(ReportSettings(out=str(tmp_path))).read_text()


def test_the_policy_of_the_report_is_the_one_that_is_filmed_and_not_the_luckiest(tmp_path):
    make_policy(tmp_path / "a", [50.0, 300.0], seed=1)
    (make_policy(tmp_path / "b", [50.0, 200.0]) / "watch.gif").touch()
    make_policy(tmp_path / "c", [50.0, 400.0], seed=2)
    assert "a return of 200 ± 2" in verdict([load_policy_run(tmp_path / name) for name in "abc"])


def test_without_a_policy_the_data_name_the_task_and_the_way_to_one(tmp_path):
    save_section(tmp_path / "model", Section("Predictor", "…"))
    (tmp_path / "model" / "model.safetensors").touch()
    for task, option in {"cheetah-run": "--task", "Pendulum-v1": "--env"}.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "meta.json").write_text(json.dumps({"frame_contract": {"tasks": [task]}}))
        html = report(ReportSettings(out=str(tmp_path))).read_text()
        assert f"<h1>{task}</h1>" in html
        assert f"train-policy {option} {task} --model {tmp_path / 'model'} --out {tmp_path / 'policy'}" in html


def test_curves_with_one_point_are_not_drawn(tmp_path):
    make_policy(tmp_path / "policy", [50.0])
    assert "Learning curves" not in report(ReportSettings(out=str(tmp_path))).read_text()
    assert curve_figures({"loss": {"training": ([1], [3.0]), "held out": ([], [])}}) == ()
    (both,) = curve_figures({"loss": {"training": ([1, 2], [3.0, 1.0])}, "norm": {"training": ([1], [3.0])}})
    (alone,) = curve_figures({"loss": {"training": ([1, 2], [3.0, 1.0])}})
    assert both.png == alone.png


def test_next_commands_are_commands_of_this_program(tmp_path):
    """They parse, from a record of all settings too, and name what is there."""
    trained = TrainPolicySettings(task="cartpole-swingup", algorithm="CrossQ", hyperparameters={"ent_coef": "auto_0.1"})
    every_setting = {name: value for name, value in asdict(trained).items() if name != "out"}
    policy = make_policy(tmp_path / "policy", [50.0, 600.0], **every_setting, out=str(tmp_path / "policy"))
    parsers = {"train-policy": TrainPolicySettings, "evaluate": EvaluateSettings, "watch": WatchSettings}
    parsers["fit"] = FitSettings
    (policy / "watch.gif").touch()
    seen = set()
    for evaluated in (False, True):
        if evaluated:
            (policy / "evaluation.json").write_text(json.dumps({"returns": [1.0]}))
        commands = [command for _, command in next_commands(tmp_path, [load_policy_run(policy)])]
        for command in commands:
            program, job, *options = shlex.split(command)
            assert program == "perceiver-obs"
            parsed = parse_settings(parsers[job], options, prog=job)
            seen.add(job)
            if job == "train-policy":
                more = {"adapt_every": 10_000} if "--adapt-every" in options else {"total_frames": 100_000}
                assert parsed == replace(trained, out=parsed.out, **more)
                assert str(parsed.out).startswith(str(policy))
        assert any(str(policy) in command for command in commands)
    assert seen == {"train-policy", "evaluate", "fit"}


def test_directories_without_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_section(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds results to report"):
        report(ReportSettings(out=str(tmp_path)))
    (tmp_path / "curve.jsonl").write_text("")
    with pytest.raises(ValueError, match="no evaluation yet"):
        load_policy_run(tmp_path)


@given(count=st.integers(1, 20), height=st.integers(1, 100), width=st.integers(1, 100))
def test_frame_tables_of_any_size(count, height, width):
    frames = noise(count, height, width, 3)
    columns, rows = size_of(plots.reconstructions(frames, frames))
    assert columns >= count * width
    assert rows >= 3 * height


def test_frames_in_a_table_are_the_frames(tmp_path):
    frames = noise(2, 8, 8, 3)
    table = np.asarray(Image.open(io.BytesIO(plots.frame_table({"frames": frames}))).convert("RGB"))
    colours = {tuple(pixel) for pixel in table.reshape(-1, 3)}
    assert {tuple(pixel) for pixel in frames.reshape(-1, 3)} <= colours


def test_filmstrip_shows_what_was_predicted_below_what_happened():
    happened, predicted = noise(12, 8, 8, 3), noise(6, 8, 8, 3)
    every = size_of(plots.filmstrip(happened, predicted))
    fewer = size_of(plots.filmstrip(happened, predicted, every=3))
    assert every[0] > fewer[0]


def test_gif_has_every_frame(tmp_path):
    plots.write_gif(tmp_path / "future.gif", noise(7, 16, 16, 3), noise(4, 16, 16, 3), frames_per_second=20)
    animation = Image.open(tmp_path / "future.gif")
    assert animation.n_frames == 7
    assert animation.info["duration"] == 50
    assert animation.size == (16 * 4 * 2 + 4, 16 * 4 + 8)


def test_charts_take_gaps_and_empty_lines():
    size_of(plots.bars({"positions": {"context": 0.9, "PCA": float("nan")}, "velocities": {"context": -3.0}}, "R²"))
    size_of(plots.curves({"loss": {"training": ([1, 2], [3.0, 0.1]), "held out": ([], [])}}))
    size_of(plots.code_usage(np.array([[5, 0, 1], [1, 1, 1]])))
    size_of(plots.learning_curve({"policy": [{"frames": 0, "mean_return": 1.0}, {"frames": 9, "mean_return": 2.0}]}))


def test_as_many_lines_and_bars_are_drawn_as_there_are(monkeypatch):
    monkeypatch.setattr(plots, "_png", lambda figure: figure)
    names = [f"line {number}" for number in range(len(plots.COLORS) + 2)]
    lines = plots.curves({"loss": {name: ([1, 2], [3.0, 1.0]) for name in names}}).axes[0].lines
    assert [line.get_label() for line in lines] == names
    bars = plots.bars({"all": dict.fromkeys(names, 0.5)}, "share").axes[0].containers
    assert [bar.get_label() for bar in bars] == names
