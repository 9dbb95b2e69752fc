"""`watch`: an episode as a model sees it, as an animated picture."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents.visualize.episodes import make_watched_env, play_watched
from agents.visualize.settings import WatchSettings
from envs.dmc.environment import DmcEnv
from envs.dmc.tasks import split_task
from envs.env_settings import file_name
from envs.frame_observation import FrameObservation
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.devices import choose_device
from perceiver_obs.evaluation.features import context_features
from perceiver_obs.evaluation.predicted_frames import check_horizon, predict, through_tokens
from perceiver_obs.evaluation.regression import Array, main_directions, read_states
from perceiver_obs.reporting.animation import SHORTEST_FRAME, SUFFIXES, save_animation
from perceiver_obs.reporting.episode_picture import EpisodePicture
from perceiver_obs.reporting.episode_view import LANES, EpisodeView, Reading

DIRECTIONS = 6  # of the context, drawn as traces
SAMPLES = 8  # pictures that a GIF's colours are chosen for
HARDLY = 1e-3  # standard deviation, in the state's own units, of an entry not worth showing


def watch(settings: WatchSettings) -> Path:
    """Plays an episode, looks at it through the model and writes the animation; returns its path.

    Raises:
        ValueError: a setting is not valid, or task, model, policy and data do not fit together.
        FileNotFoundError: there is no such model.
        OSError: the file cannot be written.
    """
    path = _check(settings)
    device = choose_device(settings.device)
    model = CausalPerceiverIO.from_pretrained(settings.model).to(device)
    check_horizon(model, settings.horizon)
    dataset = None if settings.data is None else RolloutDataset(settings.data)
    env = make_watched_env(settings, model, dataset)
    try:
        episode, others = play_watched(settings, env, dataset)
    finally:
        env.close()
    states = [np.asarray(each.states, np.float64) for each in (episode, *others) if each.states is not None]
    contexts = [each.astype(np.float64) for each in context_features(model, device, "contexts")([episode, *others])]
    readings: dict[str, list[Reading]] = {"position": [], "velocity": []}
    if env.state_names:
        readings = _readings(settings.show, env, states[0], read_states(contexts[1:], states[1:], contexts[0]))
    traces, shares = main_directions(contexts[0], DIRECTIONS)
    grid = model.video_shape[2] // model.tokenizer.downsample
    view = EpisodeView(
        title=settings.env_name,
        subtitle=_subtitle(settings, env),
        footnote=(
            f"State read from the context by ridge regression, fitted on {sum(len(e.pixels) for e in others):,} frames "
            "of other episodes. Errors are root-mean-square over this episode."
            if env.state_names
            else "This environment shows no state beside its frames."
        ),
        frames=np.asarray(episode.pixels),
        reconstructed=through_tokens(model, episode, device),
        predicted=predict(model, episode, settings.horizon, device),
        horizon=settings.horizon,
        rewards=episode.rewards,
        step_seconds=1 / env.metadata["render_fps"],
        traces=traces,
        shares=shares,
        positions=readings["position"],
        velocities=readings["velocity"],
        token_shape=(grid, grid, model.tokenizer.num_quantizers),
        context_dim=model.context_dim,
    )
    _write(path, EpisodePicture(view), settings.speed)
    print(f"watch: {path}")
    return path


def _check(settings: WatchSettings) -> Path:
    """The file to write, after checking all that can be before any work."""
    if settings.env is None:
        split_task(settings.task)
    for name, least in (("max_steps", 1), ("episodes", 2), ("seed", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(settings, name)}")
    if not settings.speed > 0:
        raise ValueError(f"speed must be positive, got {settings.speed}")
    path = Path(settings.out if settings.out is not None else f"runs/watch/{file_name(settings.env_name)}.gif")
    if path.suffix not in SUFFIXES or path.is_dir():
        raise ValueError(f"out must be a file that ends in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        return path


def _readings(
    show: Sequence[str], env: DmcEnv | FrameObservation, true: Array, read: Array
) -> dict[str, list[Reading]]:
    """The entries of the state `[T, S]` to show, by kind: those asked for, else the first that vary."""
    varies = true.std(axis=0) > HARDLY
    readings: dict[str, list[Reading]] = {"position": [], "velocity": []}
    for name in show or [name for name, does in zip(env.state_names, varies) if does]:
        column, (kind, short) = env.state_names.index(name), name.split("/")
        if len(readings[kind]) < LANES:
            readings[kind].append(Reading(short, env.state_units[column], true[:, column], read[:, column]))
    return readings


def _subtitle(settings: WatchSettings, env: DmcEnv | FrameObservation) -> str:
    contract = env.frame_contract
    parts = [
        f"policy {_short(settings.policy)}",
        f"model {_short(settings.model)}",
        f"action repeat {contract['action_repeat']}",
        f"{contract['render_quality']} rendering" if settings.env is None else f"frames from {contract['camera']}",
    ]
    return "  ·  ".join(parts)


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _write(path: Path, picture: EpisodePicture, speed: float) -> None:
    milliseconds = 10 * round(100 * picture.view.step_seconds / speed)  # GIFs count hundredths of a second
    samples = [picture.draw(int(time)) for time in np.linspace(0, len(picture) - 1, SAMPLES)]
    pictures = map(picture.draw, tqdm(range(len(picture)), unit="frame", desc="draw"))
    save_animation(path, pictures, max(SHORTEST_FRAME, milliseconds), samples)
