"""Whole files of every kind that is read, their readers, and ways to damage them."""

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_runs import write_dataset

from agents.adaptation.online_episodes import OnlineEpisodes
from agents.benchmark.results import Results
from agents.benchmark.suite import Protocol
from agents.training.policy_files import CurvePoint, LearningCurve, PolicyRecord
from agents.wrappers.vec_context import FramesSeen
from perceiver_obs import CausalPerceiverIO, VQPTTokenizer
from perceiver_obs.data.data_record import read_data_record, write_data_record
from perceiver_obs.data.rollouts import RolloutDataset, RolloutWriter
from perceiver_obs.objectives.latent import LatentObjective, LatentTargets
from perceiver_obs.objectives.saved_heads import read_heads, save_heads
from perceiver_obs.training.adaptation import training_settings
from perceiver_obs.training.checkpoint import load_checkpoint, save_checkpoint

MOST_MEMORY = 100e6  # bytes that reading files of kilobytes may take
ODD_VALUES = [
    *(None, True, -1, 0, 10**12, 2**70, 1e308, float("nan"), float("-inf"), "", "../../../etc/passwd", "\x00"),
    *([], {}, [[[]]], {"a": {"b": 1}}, "x" * 10_000, [1] * 1000, 0.5, "1"),
]


@dataclass(frozen=True)
class Target:
    """A directory of whole files, and what reads them."""

    directory: Path
    read: Callable[[Path], object]


def read_dataset(path: Path) -> None:
    for episode in RolloutDataset(path):
        for array in (episode.pixels, episode.actions, episode.rewards, episode.states):
            np.array(array).sum()


def read_model(path: Path) -> None:
    model = CausalPerceiverIO.from_pretrained(path)
    model.extract_context(torch.zeros(1, 2, *model.video_shape[1:]))


def make_targets(root: Path) -> dict[str, Target]:
    tiny = dict(num_codes=4, code_dim=4, base_channels=4, num_quantizers=1, use_3d_conv=False)
    torch.manual_seed(0)
    tokenizer = VQPTTokenizer(**tiny)
    tokenizer.save_pretrained(root / "tokenizer")
    CausalPerceiverIO(
        video_shape=(2, 3, 8, 8),
        num_latents=2,
        num_latent_channels=8,
        num_cross_attention_heads=2,
        num_self_attention_layers=1,
        **tiny,
    ).save_pretrained(root / "model")
    data = write_dataset(root / "data", [5, 7], states=True)
    whole = RolloutDataset(data)
    compressed = RolloutWriter(root / "compressed", whole.meta, compress=True)
    for number, episode in enumerate(whole):
        compressed.write_episode(number, **vars(episode))
    (root / "checkpoint").mkdir()
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(root / "checkpoint" / "c", linear, optimizer, 3, {"a": 1}, {"data": "x"}, 2.0)
    (root / "record").mkdir()
    PolicyRecord("SAC", {"model": "m"}, "abc", [{"path": "x"}]).save(root / "record")
    (root / "curve").mkdir()
    LearningCurve(root / "curve" / "c", 0).append(CurvePoint(10, 5, 1.0, 0.5, [0.5, 1.5], 3.0))
    (root / "data_record").mkdir()
    write_data_record(root / "data_record", [whole])
    (root / "settings").mkdir()
    (root / "settings" / "settings.json").write_text(json.dumps({"data": ["a"], "steps": 5, "horizons": [0, 1]}))
    (root / "heads").mkdir()
    save_heads(root / "heads", LatentObjective(LatentTargets(["a"], (3, 8, 8), ("reward",), 2, 1), 2, None))
    frame = np.full((1, 4, 4, 3), 7, np.uint8)
    kept = OnlineEpisodes(1, 2)
    kept.begin(FramesSeen(1, frame, np.ones(1, bool)))
    kept.add(FramesSeen(2, frame, np.zeros(1, bool), np.zeros((1, 2), np.float32), rewards=np.zeros(1)))
    (root / "kept").mkdir()
    kept.save(root / "kept" / "k.npz")
    protocol = Protocol()
    (root / "results").mkdir()
    Results("dmc100k", json.loads(json.dumps(protocol.shared()))).save(root / "results" / "r.json")
    return {
        "tokenizer": Target(root / "tokenizer", VQPTTokenizer.from_pretrained),
        "model": Target(root / "model", read_model),
        "dataset": Target(data, read_dataset),
        "compressed dataset": Target(root / "compressed", read_dataset),
        "checkpoint": Target(root / "checkpoint", lambda path: load_checkpoint(path / "c")),
        "policy record": Target(root / "record", PolicyRecord.load),
        "learning curve": Target(root / "curve", lambda path: LearningCurve(path / "c", 10)),
        "online episodes": Target(root / "kept", lambda path: OnlineEpisodes(1, 2).load(path / "k.npz")),
        "objective heads": Target(root / "heads", read_heads),
        "data record": Target(root / "data_record", read_data_record),
        "training settings": Target(root / "settings", training_settings),
        "benchmark results": Target(root / "results", lambda path: Results.load(path / "r.json", "dmc100k", protocol)),
    }


def damage(content: bytes, chance: random.Random) -> bytes:
    """Cuts, flips, inserts, repeats or replaces bytes; or puts an odd value somewhere into JSON."""
    kind = chance.choice(["cut", "flip", "flip", "insert", "noise", "empty", "json", "json", "json"])
    if kind == "json":
        try:
            value = json.loads(content)
        except ValueError:
            kind = "flip"
        else:
            return json.dumps(_with_odd_value(value, chance)).encode()
    place = chance.randrange(max(1, len(content)))
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + chance.randbytes(chance.choice([1, 8, 1000])) + content[place:]
    if kind in ("noise", "empty"):
        return chance.randbytes(len(content)) if kind == "noise" else b""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 4, 50])):
        # Headers come first, and are where damage matters most.
        place = chance.randrange(max(1, min(len(changed), chance.choice([16, 200, len(changed)]))))
        changed[place : place + 1] = bytes([chance.randrange(256)])
    return bytes(changed)


def _with_odd_value(value: object, chance: random.Random) -> object:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {other: entry for other, entry in value.items() if other != key}
        return {**value, key: _with_odd_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], _with_odd_value(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD_VALUES)


def read_damaged(target: Target, copy: Path, seed: int) -> str:
    """Damages one file of a copy and reads it: "read" or "refused"; AssertionError and what else a reader raises."""
    chance = random.Random(seed)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(target.directory, copy)
    file = chance.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
    file.write_bytes(damage(file.read_bytes(), chance))
    tracemalloc.start()
    try:
        target.read(copy)
        outcome = "read"
    except (ValueError, OSError):
        outcome = "refused"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MOST_MEMORY, f"reading took {peak / 1e6:.0f} MB"
    return outcome
