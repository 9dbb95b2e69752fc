"""Rollout datasets to and from Minari (https://minari.farama.org), without loss.

Frames become the observations, true states `infos["state"]`; seed and policy tag go into each episode's metadata,
and the rollout dataset's own metadata into the Minari dataset's, under "rollouts".
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from envs.episode import Episode
from envs.rollouts import RolloutDataset, RolloutError, RolloutWriter
from perceiver_obs.frame_contract import check_pixel_range

_OURS = "rollouts"  # the key of our metadata within Minari's


def export_minari(
    dataset: RolloutDataset | str | Path, dataset_id: str, root: str | Path | None = None, **metadata: Any
) -> Path:
    """Write a Minari dataset, which `minari.load_dataset(dataset_id)` reads. Frames are stored raw, not as JPEG.

    Args:
        dataset: what to export, or its directory.
        dataset_id: "namespace/name-v0"; the namespace may be absent, the version may not.
        root: where Minari keeps its datasets; None for `MINARI_DATASETS_PATH` or Minari's default.
        metadata: `author`, `author_email`, `code_permalink`, `description` and the like, as Minari's
            `create_dataset_from_buffers` takes them.

    Returns:
        The directory of the Minari dataset.

    Raises:
        ValueError: the id is malformed, or there is such a dataset already.
        ImportError: Minari is not installed.
    """
    minari = _import_minari()
    if not isinstance(dataset, RolloutDataset):
        dataset = RolloutDataset(dataset)
    _, size, _ = dataset.frame_contract.frame_shape
    policies = sorted({episode.policy.partition("(")[0] for episode in dataset})
    with _datasets_at(root), warnings.catch_warnings():
        # Minari warns of every piece of metadata that it is not given.
        warnings.filterwarnings("ignore", message=".*is set to None")
        path = _new_dataset_path(dataset_id)
        try:
            target = minari.create_dataset_from_buffers(
                dataset_id,
                [],
                env=_env_spec(dataset.meta["env"]),
                observation_space=spaces.Box(0, 255, (size, size, 3), np.uint8),
                action_space=spaces.Box(-1.0, 1.0, (dataset.meta["action_size"],), np.float32),
                jpeg_encoding=False,
                **{"algorithm_name": ", ".join(policies), **metadata},
            )
            target.storage.update_metadata({_OURS: dataset.meta})
            for number, episode in enumerate(dataset):
                target.update_dataset_from_buffer([_to_buffer(episode)])
                target.storage.update_episode_metadata([{"policy": episode.policy}], [number])
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    return path


def import_minari(dataset_id: str, out: str | Path, root: str | Path | None = None) -> RolloutDataset:
    """Turn a local Minari dataset of square RGB frames and continuous actions into a rollout dataset.

    One that `export_minari` wrote comes back as it was, but for the numbers of its episodes, which become 0, 1, ….
    Of any other, the frame contract says only what Minari knows, and rewards and actions are stored as float32.
    Datasets that Minari stored as JPEG (its default) come with what that lost.

    Args:
        dataset_id: as `minari.load_dataset` takes it.
        out: directory of the new dataset; nothing may be there yet.
        root: where Minari keeps its datasets; None for `MINARI_DATASETS_PATH` or Minari's default.

    Raises:
        RolloutError: the observations are not uint8 `[size, size, 3]`, the actions not a vector, or `out` exists.
        FileNotFoundError: there is no such Minari dataset.
        ImportError: Minari is not installed.
    """
    minari = _import_minari()
    out = Path(out)
    if out.exists():
        raise RolloutError(f"{out} exists already; import into a new directory")
    with _datasets_at(root):
        source = minari.load_dataset(dataset_id)
    meta = source.storage.metadata.get(_OURS) or _describe(source)
    writer = RolloutWriter(out, meta)
    properties = source.storage.get_episode_metadata(source.episode_indices)
    for number, (data, known) in enumerate(zip(source.iterate_episodes(), properties)):
        states = data.infos["state"] if meta["state_names"] is not None else None
        writer.write_episode(
            number,
            pixels=data.observations,
            actions=np.asarray(data.actions, np.float32),
            rewards=np.asarray(data.rewards, np.float32),
            terminated=bool(data.terminations[-1]),
            truncated=bool(data.truncations[-1]),
            seed=int(known.get("seed") or 0),
            policy=str(known.get("policy", f"minari:{dataset_id}")),
            states=states,
        )
    return RolloutDataset(out)


def _to_buffer(episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    ends = np.zeros(len(episode), bool)
    ends[-1] = True
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.pixels,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=ends & episode.terminated,
        truncations=ends & episode.truncated,
        infos=None if episode.states is None else {"state": episode.states},
    )


def _describe(source: Any) -> dict[str, Any]:
    """Metadata for a Minari dataset that did not come from us."""
    shape, action_space = source.observation_space.shape, source.action_space
    if shape is None or len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
        raise RolloutError(f"expected square RGB frames as observations, got {source.observation_space}")
    if source.observation_space.dtype != np.uint8:
        raise RolloutError(f"expected frames of dtype uint8, got {source.observation_space.dtype}")
    try:
        check_pixel_range(source.observation_space, f"observations of {source.id}")
    except ValueError as error:
        raise RolloutError(str(error)) from None
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise RolloutError(f"expected actions that are vectors, got {action_space}")
    spec = source.env_spec
    env_id = spec.id if spec else "unknown"
    contract = {"size": shape[0], "channels": 3, "tasks": [env_id]}
    return {
        "env": {"id": env_id, "kwargs": dict(spec.kwargs) if spec else {}},
        "frame_contract": {**contract, "action_repeat": None, "camera": None, "render_quality": None},
        "action_size": action_space.shape[0],
        "state_names": None,
        "collection": {"minari": source.id},
    }


def _env_spec(env: dict[str, Any]) -> EnvSpec | None:
    """The environment's spec, for Minari's `recover_environment`; None where the id is not registered here."""
    with contextlib.suppress(gymnasium.error.Error):
        spec = gymnasium.spec(env["id"])
        return EnvSpec(id=spec.id, entry_point=spec.entry_point, kwargs={**spec.kwargs, **env["kwargs"]})
    return None


def _new_dataset_path(dataset_id: str) -> Path:
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError):
        raise ValueError(f"expected a Minari dataset id like 'namespace/name-v0', got {dataset_id!r}") from None
    path = get_dataset_path(dataset_id)
    if path.exists():
        raise ValueError(f"there is a Minari dataset {dataset_id} already, at {path}")
    return path


@contextlib.contextmanager
def _datasets_at(root: str | Path | None) -> Iterator[None]:
    """Minari takes its directory from the environment alone."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    if root is not None:
        os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if root is not None:
            del os.environ["MINARI_DATASETS_PATH"]
            if before is not None:
                os.environ["MINARI_DATASETS_PATH"] = before


def _import_minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari is not installed: pip install 'perceiver-obs[minari]'") from error
    return minari
