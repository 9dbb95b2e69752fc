"""Collecting on a Ray cluster of two nodes: the same episodes, each once, also when a node dies on the way."""

import logging
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from test_collect import files, settings

from agents.cli import main
from envs import CollectionError, CollectSettings, collect
from perceiver_obs.data.rollouts import RolloutWriter
from perceiver_obs.settings import parse_settings

ray = pytest.importorskip("ray")


def test_where_there_is_no_cluster_it_is_one_line(tmp_path, capsys):
    options = ["--task", "cartpole-swingup", "--episodes", "1", "--max-steps", "3", "--out", str(tmp_path / "data")]
    for address in ("127.0.0.1:1", "auto"):
        assert main(["collect", *options, "--ray", address]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert "Ray" in lines[-1]
        assert "Traceback" not in "".join(lines)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A node of one core, to which others may be added; it knows where the bad policies write."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAD_START", str(tmp_path_factory.mktemp("ray") / "counter"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


@pytest.fixture
def bad_start(cluster):
    counter = Path(os.environ["BAD_START"])
    counter.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_node_that_dies_loses_no_episode_and_none_comes_twice(cluster, tmp_path, monkeypatch, caplog):
    expected = collect(settings(tmp_path / "here", episodes=6, max_steps=100), progress=False)
    second = cluster.add_node(num_cpus=1)
    written = Counter()
    write = RolloutWriter.write_episode

    def count(self, index, *args, **kwargs):
        written[index] += 1
        return write(self, index, *args, **kwargs)

    monkeypatch.setattr(RolloutWriter, "write_episode", count)
    there = settings(tmp_path / "there", episodes=6, max_steps=100, workers=0, ray=cluster.address)
    thread = threading.Thread(target=lambda: collect(there, progress=False))
    thread.start()
    while len(written) < 2:
        assert thread.is_alive()
        time.sleep(0.01)
    cluster.remove_node(second, allow_graceful=False)
    thread.join()
    assert files(tmp_path / "there") == files(expected.path)
    assert written == Counter(range(6))
    lost = [message for message in caplog.messages if f"(node {second.node_id})" in message]
    assert len(lost) == 1
    assert "died" in lost[0]


@pytest.mark.usefixtures("bad_start")
def test_actors_that_end_badly_are_replaced_and_their_episode_is_the_same_as_without_ray(cluster, tmp_path, caplog):
    """One that dies, and then one that hangs; one that raises: as without Ray, in test_collect.py."""
    bad = settings(
        tmp_path / "there",
        policy="failing_policies:DiesThenHangs",
        episodes=2,
        stall_seconds=5,
        ray=cluster.address,
    )
    with caplog.at_level(logging.WARNING):
        assert len(collect(bad, progress=False)) == 2
    messages = [message for message in caplog.messages if message.startswith("worker")]
    for number, (message, reason) in enumerate(zip(messages, ("died", "gave no sign of life"), strict=True)):
        assert f"worker {number} (node " in message
        assert f"in episode {number} {reason}" in message
    for thread in threading.enumerate():
        if thread.name.startswith("worker"):
            thread.join(1)
            assert not thread.is_alive()  # a call while Ray shuts down would end this process
    here = replace(bad, out=str(tmp_path / "here"), ray=None)  # nothing ends badly by now
    assert files(tmp_path / "there") == files(collect(here, progress=False).path)


def test_what_cannot_work_is_said_at_once(cluster, tmp_path):
    with pytest.raises(CollectionError, match="while starting failed: LookupError: the weights are gone"):
        collect(settings(tmp_path, policy="failing_policies:CannotBeMade", ray=cluster.address), progress=False)


def test_the_flag_alone_means_the_cluster_of_this_machine():
    for arguments in (["--ray"], ["--ray", "--episodes", "3"], ["--ray", "auto"]):
        assert parse_settings(CollectSettings, arguments, "collect").ray == "auto"
    assert parse_settings(CollectSettings, ["--ray", "local"], "collect").ray == "local"
    assert parse_settings(CollectSettings, ["--ray=ray://head:10001"], "collect").ray == "ray://head:10001"
    for arguments in ([], ["--ray", "None"]):
        assert parse_settings(CollectSettings, arguments, "collect").ray is None
    with pytest.raises(SystemExit, match="2"):
        parse_settings(CollectSettings, ["--ray", "local", "auto"], "collect")
