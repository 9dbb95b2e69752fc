"""Tasks of the dm_control suite as Gymnasium environments."""

from envs.dmc.environment import DmcEnv, make_dmc, state_names

__all__ = ["DmcEnv", "make_dmc", "state_names"]
