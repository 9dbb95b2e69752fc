"""`watch`: an episode as a model sees it, as an animated picture."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from agents.watch_episodes import make_watched_env, play_watched
from envs.dmc import DmcEnv, RenderQuality
from envs.rollouts import RolloutDataset
from envs.tasks import TASKS, near_matches
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.devices import choose_device
from perceiver_obs.training.animation import SHORTEST_FRAME, SUFFIXES, save_animation
from perceiver_obs.training.episode_picture import EpisodePicture
from perceiver_obs.training.episode_view import LANES, EpisodeView, Reading
from perceiver_obs.training.foretelling import check_horizon, foretell, through_tokens
from perceiver_obs.training.probe_features import context_features
from perceiver_obs.training.probe_regression import Array
from perceiver_obs.training.readout import main_directions, read_states
from perceiver_obs.training.settings import by_place

DIRECTIONS = 6  # of the context, drawn as traces
SAMPLES = 8  # pictures that a GIF's colours are chosen for
HARDLY = 1e-3  # standard deviation, in the state's own units, of an entry not worth showing


@dataclass
class WatchSettings:
    """Watch a task through a model: an animation of frames, predictions, contexts and the state read from them."""

    task: str = by_place("walker-walk")
    """Task of the dm_control suite, as domain-task. Its name may be left out where it comes first."""
    model: str = "dmc-small"
    """Bundled name or directory of the model, or "hf://owner/name" of the hub."""
    policy: str = "correlated"
    """What acts: "random", "correlated", a directory or zip of train-policy, or a "module:Class" of your own.
    Also the .zip of any other SB3 policy on states or pixels. Load only what you trust: these hold pickles."""
    out: str | None = None
    """File to write: .gif, or .webp, which keeps every colour as it is. None: runs/watch/TASK.gif."""
    max_steps: int = 200
    """Environment steps to play, unless the episode ends before."""
    horizon: int = 3
    """Steps ahead that are foretold, in one go.
    Beyond what the model was trained on (train-predictor --horizons) it foretells nothing of worth."""
    data: str | None = None
    """Rollouts with states to fit the read-out of the state on.
    None: episodes are played for it, half of them by the policy, half by correlated noise from random starts."""
    episodes: int = 16
    """How many are played."""
    show: tuple[str, ...] = ()
    """Entries of the state to show, such as "position/slider velocity/slider", up to three of each kind.
    None named: the first that vary."""
    action_repeat: int | Literal["planet"] | None = None
    """Control steps per environment step, or "planet" for the DMControl-100k table.
    None: as the policy, the data or the model was trained with, else the table, and 2 for tasks that are not in it."""
    render_quality: RenderQuality | None = None
    """Smooth shows small motion, fast is twice as fast without, standard is MuJoCo's own and slow.
    None: as for action_repeat, else smooth."""
    camera: int | str | None = None
    """Name or number of one of the task's cameras. None: as for action_repeat, else the customary one."""
    speed: float = 1.0
    """Speed of the animation; 1 is that of the simulation, as far as a GIF can be that fast (50 frames a second)."""
    seed: int = 0
    """Seed of the episodes."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""


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
    states = [np.asarray(each.states, np.float64) for each in (episode, *others)]
    contexts = [each.astype(np.float64) for each in context_features(model, device, "contexts")([episode, *others])]
    readings = _readings(settings.show, env, states[0], read_states(contexts[1:], states[1:], contexts[0]))
    traces, shares = main_directions(contexts[0], DIRECTIONS)
    grid = model.video_shape[2] // model.tokenizer.downsample
    view = EpisodeView(
        title=settings.task,
        subtitle=_subtitle(settings, env),
        footnote=(
            f"State read from the context by ridge regression, fitted on {sum(len(e.pixels) for e in others):,} frames "
            "of other episodes. Errors are root-mean-square over this episode."
        ),
        frames=np.asarray(episode.pixels),
        reconstructed=through_tokens(model, episode, device),
        foretold=foretell(model, episode, settings.horizon, device),
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
    if settings.task not in TASKS:
        raise ValueError(
            f"watch shows tasks of dm_control, got {settings.task!r}; {near_matches(settings.task, TASKS)}"
        )
    for name, least in (("max_steps", 1), ("episodes", 2), ("seed", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(settings, name)}")
    if not settings.speed > 0:
        raise ValueError(f"speed must be positive, got {settings.speed}")
    path = Path(settings.out if settings.out is not None else f"runs/watch/{settings.task}.gif")
    if path.suffix not in SUFFIXES or path.is_dir():
        raise ValueError(f"out must be a file that ends in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        return path


def _readings(show: Sequence[str], env: DmcEnv, true: Array, read: Array) -> dict[str, list[Reading]]:
    """The entries of the state `[T, S]` to show, by kind: those asked for, else the first that vary."""
    varies = true.std(axis=0) > HARDLY
    readings: dict[str, list[Reading]] = {"position": [], "velocity": []}
    for name in show or [name for name, does in zip(env.state_names, varies) if does]:
        column, (kind, short) = env.state_names.index(name), name.split("/")
        if len(readings[kind]) < LANES:
            readings[kind].append(Reading(short, env.state_units[column], true[:, column], read[:, column]))
    return readings


def _subtitle(settings: WatchSettings, env: DmcEnv) -> str:
    contract = env.frame_contract
    parts = [
        f"policy {_short(settings.policy)}",
        f"model {_short(settings.model)}",
        f"action repeat {contract['action_repeat']}",
        f"{contract['render_quality']} rendering",
    ]
    return "  ·  ".join(parts)


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _write(path: Path, picture: EpisodePicture, speed: float) -> None:
    milliseconds = 10 * round(100 * picture.view.step_seconds / speed)  # GIFs count hundredths of a second
    samples = [picture.draw(int(time)) for time in np.linspace(0, len(picture) - 1, SAMPLES)]
    pictures = map(picture.draw, tqdm(range(len(picture)), unit="frame", desc="draw"))
    save_animation(path, pictures, max(SHORTEST_FRAME, milliseconds), samples)
