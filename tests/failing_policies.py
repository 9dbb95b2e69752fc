"""Behaviour policies that end badly, named by "failing_policies:Class" and imported by worker processes."""

import os
import signal
import time
from pathlib import Path

from envs.collection.policies import UniformRandom


class _BadStart(UniformRandom):
    """Ends badly in the very first episode of all workers together; a file in $BAD_START keeps count."""

    def begin(self, rng):
        counter = Path(os.environ["BAD_START"])
        if not counter.exists():
            counter.touch()
            self.end_badly()
        return super().begin(rng)


class Raises(_BadStart):
    def end_badly(self):
        raise ArithmeticError("no good")


class Dies(_BadStart):
    def end_badly(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(_BadStart):
    def end_badly(self):
        time.sleep(1000)


class DiesThenHangs(UniformRandom):
    """Dies in the very first episode of all workers together, and hangs in the second."""

    def begin(self, rng):
        counter = Path(os.environ["BAD_START"])
        begun = counter.stat().st_size if counter.exists() else 0
        with counter.open("ab") as file:
            file.write(b".")
        if begun == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if begun == 1:
            time.sleep(1000)
        return super().begin(rng)


class RaisesInSomeEpisodes(UniformRandom):
    """Fails in the same episodes whenever they are played."""

    def begin(self, rng):
        if rng.random() < 0.3:
            raise ArithmeticError("unlucky")
        return super().begin(rng)


class CannotBeMade:
    def __init__(self, context):
        raise LookupError("the weights are gone")
