"""Sizes by name, for models and for the command line."""

from dataclasses import fields

import pytest
import torch

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.presets import PRESETS, preset
from perceiver_obs.settings import parse_settings
from perceiver_obs.training.settings import TrainPredictorSettings, TrainTokenizerSettings

TRAININGS = (TrainTokenizerSettings, TrainPredictorSettings)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_a_model_and_both_trainings_settings(name):
    with torch.device("meta"):
        model = CausalPerceiverIO.from_preset(name, action_dim=2)
    sizes = preset(name)
    assert model.receptive_field == sizes["sequence_length"] + sizes["token_time_kernel"] - 1
    parsed = [parse_settings(kind, ["--data", "x", "--preset", name], "train") for kind in TRAININGS]
    parsed_sizes = {key: value for settings in parsed for key, value in vars(settings).items() if key in sizes}
    assert parsed_sizes == sizes


def test_small_is_what_the_trainings_default_to_and_what_is_bundled():
    defaults = {field.name: field.default for kind in TRAININGS for field in fields(kind)}
    sizes = preset("small")
    assert {name: defaults[name] for name in sizes} == sizes
    bundled = CausalPerceiverIO.from_pretrained("dmc-small").config()
    sizes.pop("sequence_length")
    assert {name: bundled[name] for name in sizes} == sizes


def test_options_override_a_preset():
    settings = parse_settings(TrainTokenizerSettings, ["--data", "x", "--preset=tiny", "--base-channels", "8"], "train")
    assert (settings.base_channels, settings.code_dim) == (8, 16)


def test_a_preset_that_means_nothing_is_refused():
    from agents.training.settings import EvaluateSettings

    with pytest.raises(ValueError, match="unknown preset 'huge'; there are tiny, small, base"):
        parse_settings(TrainTokenizerSettings, ["--data", "x", "--preset", "huge"], "train")
    with pytest.raises(ValueError, match="--preset is for train-tokenizer and train-predictor"):
        parse_settings(EvaluateSettings, ["--preset", "tiny"], "evaluate")
    with pytest.raises(SystemExit, match="2"):
        parse_settings(TrainTokenizerSettings, ["--data", "x", "--preset"], "train")
