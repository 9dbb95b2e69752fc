"""dm_control tasks and any Gymnasium environment from pixels, and rollouts of them on disk.

Importing this package imports neither torch nor dm_control and leaves the OpenGL backend open; that waits until an
environment is made.
"""

from envs.collect import CollectSettings, collect
from envs.dmc import DmcEnv, make_dmc, state_names
from envs.env_settings import EnvSettings
from envs.episode import Episode, EpisodeExists, RolloutError
from envs.frame_observation import FrameObservation, make_env
from envs.minari import export_minari, import_minari
from envs.pool import CollectionError
from envs.record import RecordRollouts
from envs.rollouts import RolloutDataset, RolloutWriter
from envs.tasks import TASKS, register_ids

register_ids()

__all__ = [
    "TASKS",
    "CollectSettings",
    "CollectionError",
    "DmcEnv",
    "EnvSettings",
    "Episode",
    "EpisodeExists",
    "FrameObservation",
    "RecordRollouts",
    "RolloutDataset",
    "RolloutError",
    "RolloutWriter",
    "collect",
    "export_minari",
    "import_minari",
    "make_dmc",
    "make_env",
    "state_names",
]
