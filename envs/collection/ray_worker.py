"""Workers that are actors of a Ray cluster, on whichever machine has a core free.

Episodes come back to the process that collects, which alone writes the dataset: the machines need no disk in common,
and an episode is written once, whoever dies. `perceiver_obs` has to be installed on each machine, and policies given
as files or as "module:Class" have to be found there under the same name.
"""

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
except ImportError:
    raise ImportError("collecting on Ray needs it: pip install 'perceiver-obs[ray]'") from None

from envs.collection.pool import Messages, Worker
from envs.collection.process_worker import worker_variables
from envs.collection.settings import CollectSettings
from envs.collection.worker import make_players, play_in_parts
from perceiver_obs.data.episode import EpisodeExists
from perceiver_obs.data.rollouts import RolloutWriter

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[int]:
    """Connects to a Ray cluster and gives the number of its cores.

    Args:
        address: `"auto"` for the cluster that this machine belongs to, `"local"` for one of this machine's own, or
            where one is.

    Raises:
        ConnectionError: there is no cluster.
    """
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal():  # where nothing answers Ray tries for many minutes
        try:
            socket.create_connection((host.removeprefix("ray://"), int(port)), _ANSWER_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error
    joined = ray.is_initialized()
    if not joined:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        if not joined:
            ray.shutdown()


class RayWorker(Worker):
    """One actor.

    Args:
        name: for messages to the user.
        settings: of the collection.
        writer: what its episodes are written with, here.
        messages: see `Worker`.
    """

    def __init__(self, name: str, settings: CollectSettings, writer: RolloutWriter, messages: Messages):
        super().__init__(name)
        self._settings, self._writer, self._messages = settings, writer, messages
        self._commands: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._actor: Any = None
        self._place: Any = None
        self._node = "no machine yet"
        self._killed = False
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
        self._thread.start()

    def play(self, episode: int) -> None:
        self.episode = episode
        self._commands.put(episode)

    def stop(self) -> None:
        self.stopped, self.episode = True, None
        self._commands.put(None)

    def kill(self) -> None:
        """Ends it, and waits until nothing of it calls Ray: a call while Ray shuts down takes this process with it."""
        self._killed = True
        self._commands.put(None)
        self._release()
        self._thread.join(_ANSWER_SECONDS)

    def failure_message(self) -> str:
        work = "while starting" if self.episode is None else f"in episode {self.episode}"
        return f"{self.name} ({self._node}) {work} {self.end or 'ended'}"

    def _follow(self) -> None:
        self._work()
        self._actor = self._place = None  # handles that go later would call a Ray that may be shut down by then
        self._messages.put((self, None))

    def _work(self) -> None:
        """Starts the actor, has it play what is ordered, and passes on what it says."""
        index = None
        try:
            self._start()
            self._say(ready=True)
            while (index := self._commands.get()) is not None:
                for part in self._actor.play.remote(index):
                    count, episode = ray.get(part)
                    self._say(rendered=count)
                with contextlib.suppress(EpisodeExists):  # another collection of the same dataset was faster
                    self._writer.write_episode(index, **vars(episode))
                self._say(done=index, frames=len(episode.pixels))
        except Exception as error:
            self._take_down(index, error)
        finally:
            self._release()

    def _start(self) -> None:
        self._place = placement_group([{"CPU": 1}])
        while not self._place.wait(_LOOK_SECONDS):  # all cores are taken: those of other workers, or a machine is lost
            self._check_alive()
            self._say(rendered=0)
        self._actor = (
            ray.remote(_Player)
            .options(
                num_cpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._place),
                runtime_env={"env_vars": worker_variables(cores_each=1)},
            )
            .remote()
        )
        self._check_alive()
        self._node = f"node {ray.get(self._actor.node.remote())}"
        ray.get(self._actor.prepare.remote(self._settings))

    def _check_alive(self) -> None:
        if self._killed:
            raise RayError(self.end or "killed")

    def _take_down(self, index: int | None, error: Exception) -> None:
        cause = error.cause if isinstance(error, RayTaskError) else error
        reason = f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
        if isinstance(cause, RayError):  # the actor or its machine died: `end` may say already that we killed it
            self.end = self.end or f"died: {reason}"
        else:
            self._say(failed=index, error=reason, errno=getattr(cause, "errno", None))

    def _say(self, **message: Any) -> None:
        self._messages.put((self, message))

    def _release(self) -> None:
        with contextlib.suppress(Exception):  # what is gone is released
            ray.kill(self._actor)
        with contextlib.suppress(Exception):
            remove_placement_group(self._place)


class _Player:
    """The actor: plays episodes, and yields what `play_in_parts` does."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def prepare(self, settings: CollectSettings) -> None:
        self.settings = settings
        self.env, self.policy = make_players(settings)

    def play(self, index: int) -> Iterator[tuple[int, Any]]:
        yield from play_in_parts(self.env, self.policy, self.settings, index)
