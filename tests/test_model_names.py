"""What a model's name means, bundled, a directory here or of the hub, and what is said where there is none."""

from pathlib import Path

import pytest
from drawn_env import DrawnEnv
from tiny_models import tiny_model

from agents.visualize.generate import generate
from agents.visualize.settings import GenerateSettings
from perceiver_obs import CausalPerceiverIO, ContextEncoder, PerceiverContextWrapper
from perceiver_obs.evaluation.probe import probe
from perceiver_obs.evaluation.settings import ProbeSettings


@pytest.fixture(scope="module")
def model() -> CausalPerceiverIO:
    return tiny_model()


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[tuple[str, str | None]]:
    """What the hub is asked for, in place of the network; the working directory is empty."""
    asked = []

    def refuse(name, revision=None, **rest):
        asked.append((name, revision))
        raise ConnectionError("no network")

    monkeypatch.setattr("perceiver_obs.hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/predictor", "no directory 'runs/predictor'; for the model of the hub write hf://runs/predictor$"),
        (Path("runs/predictor"), "no directory 'runs/predictor'"),
        ("./runs/predictor", "no directory './runs/predictor'$"),
        ("/nowhere/at/all", "no directory '/nowhere/at/all'$"),
        ("predictor", "'predictor' is neither a directory here nor one of .*; of the hub write hf://owner/name"),
        (Path("dmc-small"), "no directory 'dmc-small'"),
        ("", "'' is neither a directory"),
    ],
)
def test_a_local_path_never_goes_to_the_network(asked, name, message):
    for load in (CausalPerceiverIO.from_pretrained, ContextEncoder):
        with pytest.raises(FileNotFoundError, match=message):
            load(name)
    assert asked == []


def test_a_command_asks_nobody_for_its_own_default(asked):
    for command in (lambda: probe(ProbeSettings()), lambda: generate(GenerateSettings())):
        with pytest.raises(FileNotFoundError, match="no directory 'runs/predictor'"):
            command()
    assert asked == []


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("hf://owner/name", None, ("owner/name", None)),
        ("hf://owner/name", "v1", ("owner/name", "v1")),
        ("hf://owner/na.me-2@refs/pr/1", None, ("owner/na.me-2", "refs/pr/1")),
    ],
)
def test_names_of_the_hub_are_asked_for_there(asked, name, revision, expected):
    Path("owner/name").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"the hub did not give '{name}': no network"):
        CausalPerceiverIO.from_pretrained(name, revision=revision)
    assert asked == [expected]


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("hf://name", None, "written hf://owner/name"),
        ("hf://owner/name/file", None, "written hf://owner/name"),
        ("hf://owner/name@a", "b", "written hf://owner/name"),
        ("dmc-small", "main", "a revision is for models of the hub"),
    ],
)
def test_malformed_names_of_the_hub_are_refused(asked, name, revision, message):
    with pytest.raises(ValueError, match=message):
        CausalPerceiverIO.from_pretrained(name, revision=revision)
    assert asked == []


def test_a_directory_does_not_shadow_a_bundled_model(asked, tmp_path, model):
    model.save_pretrained("dmc-small")
    with pytest.warns(UserWarning, match=r"ships in the package; write './dmc-small' for the directory here"):
        bundled = CausalPerceiverIO.from_pretrained("dmc-small")
    assert bundled.bundled_name == "dmc-small"
    assert bundled.fingerprint != model.fingerprint
    for name in ("./dmc-small", Path("dmc-small"), str(tmp_path / "dmc-small")):
        here = CausalPerceiverIO.from_pretrained(name)
        assert here.fingerprint == model.fingerprint
        assert here.bundled_name is None
    env = PerceiverContextWrapper(DrawnEnv(), Path("dmc-small"))
    assert env.encoder.fingerprint == model.fingerprint
    assert env._saved_kwargs["model"] == "./dmc-small", "so that a spec finds it too"


def test_a_directory_that_is_no_model_says_what_it_is(asked, tmp_path, model):
    run, found = Path("runs/walker"), Path("runs/models/good")
    run.mkdir(parents=True)
    for name in ("settings.json", "checkpoint.safetensors"):
        (run / name).write_text("{}")
    model.save_pretrained(found)
    Path("notes").mkdir()
    Path("notes/of-today.txt").touch()
    Path("empty").mkdir()
    for path, message in (
        ("runs", f"runs holds no config.json itself, but there are models inside: .*{found}"),
        (run, f"{run} holds no config.json: its training has not finished"),
        (found / "config.json", "is a file; a model is a directory with config.json and model.safetensors"),
        ("notes", "notes holds no config.json, but of-today.txt; a model is a directory with"),
        ("empty", "empty holds no config.json, but nothing; a model is"),
    ):
        for load in (CausalPerceiverIO.from_pretrained, ContextEncoder):
            with pytest.raises(ValueError, match=message):
                load(path)
