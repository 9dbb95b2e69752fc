"""dm_control tasks and any Gymnasium environment from pixels, and rollouts of them on disk.

Importing this package imports neither torch nor dm_control and leaves the OpenGL backend open; that waits until an
environment is made.
"""

from envs.collection.collect import collect
from envs.collection.pool import CollectionError
from envs.collection.settings import CollectSettings
from envs.dmc.environment import DmcEnv, make_dmc, state_names
from envs.dmc.tasks import TASKS, register_ids
from envs.env_settings import EnvSettings
from envs.frame_observation import FrameObservation, make_env
from envs.minari import export_minari, import_minari
from perceiver_obs.data.episode import Episode, EpisodeExists, RolloutError
from perceiver_obs.data.record import RecordRollouts
from perceiver_obs.data.rollouts import RolloutDataset, RolloutWriter

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
