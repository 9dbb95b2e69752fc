"""Rollout datasets to and from Minari (https://minari.farama.org), without loss.

Frames become the observations, actions are those that the environment takes (in its own unit, choices as integers),
true states `infos["state"]`; seed and policy tag go into each episode's metadata,
and the rollout dataset's own metadata into the Minari dataset's, under "rollouts".
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from perceiver_obs.actions import ActionEncoding, dataset_actions
from perceiver_obs.data.describe import describe_foreign
from perceiver_obs.data.episode import Episode
from perceiver_obs.data.rollouts import RolloutDataset, RolloutError, RolloutWriter
from perceiver_obs.files import new_directory, rename_directory, scratch_directory

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
    with _datasets_at(root):
        path = _new_dataset_path(dataset_id)
        with scratch_directory(_datasets_root() / path.name) as scratch:
            with _datasets_at(scratch):
                _export(minari, dataset, dataset_id, metadata)
            _create_namespace(dataset_id)
            try:
                rename_directory(scratch / dataset_id, path)
            except FileExistsError:
                raise ValueError(f"there is a Minari dataset {dataset_id} already, at {path}") from None
    return path


def import_minari(dataset_id: str, out: str | Path, root: str | Path | None = None) -> RolloutDataset:
    """Turn a local Minari dataset of square RGB frames into a rollout dataset.

    One that `export_minari` wrote comes back as it was, but for the numbers of its episodes, which become 0, 1, ….
    Of any other, the frame contract says only what Minari knows, rewards are stored as float32, and actions are
    encoded by the dataset's action space (`perceiver_obs.ActionEncoding`): normalised to [-1, 1], choices one-hot.
    Datasets that Minari stored as JPEG (its default) come with what that lost.

    Args:
        dataset_id: as `minari.load_dataset` takes it.
        out: directory of the new dataset; nothing may be there yet.
        root: where Minari keeps its datasets; None for `MINARI_DATASETS_PATH` or Minari's default.

    Raises:
        RolloutError: the observations are not uint8 `[size, size, 3]`, the actions cannot be encoded, an episode does
            not fit, or `out` exists. Whatever fails, nothing is left in `out`.
        FileNotFoundError: there is no such Minari dataset.
        ImportError: Minari is not installed.
    """
    minari = _import_minari()
    out = Path(out)
    if os.path.lexists(out):
        raise RolloutError(f"{out} exists already; import into a new directory")
    with _datasets_at(root):
        source = minari.load_dataset(dataset_id)
    if not source.total_episodes:
        raise RolloutError(f"the Minari dataset {dataset_id} holds no episode")
    meta = source.storage.metadata.get(_OURS) or _describe(source)
    try:
        with new_directory(out) as directory:
            _import(source, RolloutWriter(directory, meta))
    except FileExistsError:  # of another import, at this moment
        raise RolloutError(f"{out} exists already; import into a new directory") from None
    return RolloutDataset(out)


def _import(source: Any, writer: RolloutWriter) -> None:
    encoding = dataset_actions(writer.meta)
    properties = source.storage.get_episode_metadata(source.episode_indices)
    for number, (data, known) in enumerate(zip(source.iterate_episodes(), properties)):
        writer.write_episode(
            number,
            pixels=data.observations,
            actions=_encode(encoding, data.actions, number),
            rewards=np.asarray(data.rewards, np.float32),
            terminated=bool(data.terminations[-1]),
            truncated=bool(data.truncations[-1]),
            seed=int(known.get("seed") or 0),
            policy=str(known.get("policy", f"minari:{source.id}")),
            states=data.infos["state"] if writer.meta["state_names"] is not None else None,
        )


def _export(minari: Any, dataset: RolloutDataset, dataset_id: str, metadata: dict[str, Any]) -> None:
    size, encoding = dataset.meta["frame_contract"]["size"], dataset_actions(dataset.meta)
    action_space = _space_in_minari(encoding)
    policies = sorted({episode.policy.partition("(")[0] for episode in dataset})
    with warnings.catch_warnings():
        # Minari warns of every piece of metadata that it is not given.
        warnings.filterwarnings("ignore", message=".*is set to None")
        target = minari.create_dataset_from_buffers(
            dataset_id,
            [],
            env=_env_spec(dataset.meta["env"]),
            observation_space=spaces.Box(0, 255, (size, size, 3), np.uint8),
            action_space=action_space,
            jpeg_encoding=False,
            **{"algorithm_name": ", ".join(policies), **metadata},
        )
        target.storage.update_metadata({_OURS: dataset.meta})
        for number, episode in enumerate(dataset):
            actions = encoding.decode(episode.actions).astype(action_space.dtype)
            target.update_dataset_from_buffer([_to_buffer(episode, actions)])
            target.storage.update_episode_metadata([{"policy": episode.policy}], [number])


def _space_in_minari(encoding: ActionEncoding) -> spaces.Space:
    """float32 as `make_dmc`'s own where that loses nothing: a number in another unit may need more digits."""
    if encoding == ActionEncoding.unit(encoding.size):
        return spaces.Box(-1.0, 1.0, encoding.shape, np.float32)
    return encoding.space()


def _encode(encoding: ActionEncoding, actions: Any, number: int) -> np.ndarray:
    try:
        return encoding.encode(actions, len(actions))
    except ValueError as error:
        raise RolloutError(f"episode {number}: {error}") from None


def _to_buffer(episode: Episode, actions: np.ndarray) -> Any:
    from minari.data_collector import EpisodeBuffer

    ends = np.zeros(len(episode), bool)
    ends[-1] = True
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.pixels,
        actions=actions,
        rewards=episode.rewards,
        terminations=ends & episode.terminated,
        truncations=ends & episode.truncated,
        infos=None if episode.states is None else {"state": episode.states},
    )


def _describe(source: Any) -> dict[str, Any]:
    """Metadata for a Minari dataset that did not come from us."""
    try:
        actions = ActionEncoding.from_space(source.action_space)
    except TypeError as error:
        raise RolloutError(f"{source.id} cannot be imported: {error}") from None
    meta = describe_foreign(source.env_spec, source.observation_space, actions)
    return {**meta, "collection": {"minari": source.id}}


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


def _datasets_root() -> Path:
    from minari.storage import get_dataset_path

    return get_dataset_path()


def _create_namespace(dataset_id: str) -> None:
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        with contextlib.suppress(ValueError):  # another process was faster
            create_namespace(namespace)


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
