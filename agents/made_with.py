"""Versions and machine of a training, kept with its results: times and last digits depend on them."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from perceiver_obs.devices import choose_device

PACKAGES = ("torch", "stable_baselines3", "dm_control", "mujoco", "numpy")


def made_with(device: str) -> dict[str, str]:
    """Versions by package, and what the computations of `device` run on."""
    return {"python": platform.python_version(), "device": _device(device)} | {name: version(name) for name in PACKAGES}


def _device(device: str) -> str:
    chosen = choose_device(device)
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{chosen.type}, {processor()}"


def processor() -> str:
    """The processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
