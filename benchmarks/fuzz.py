"""Damaged files against every reader, for ten minutes: each is read or refused with a clear error.

Writes `results/fuzz.json`; run it by `make fuzz`. The kinds of damage are those of `tests/test_fuzz_files.py`.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

from measure import write_results

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_fuzz_files import MOST_MEMORY, Target, damage, make_targets


def try_one(target: Target, copy: Path, seed: int) -> str:
    """Damages one file of a copy and reads it: "read", "refused", or what went wrong."""
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
    except Exception as error:
        outcome = f"{type(error).__name__} at seed {seed}: {error}"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return outcome if peak < MOST_MEMORY else f"{peak / 1e6:.0f} MB at seed {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    began, tried = time.monotonic(), {}
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        targets = make_targets(root / "whole")
        tried = {name: Counter() for name in targets}
        while time.monotonic() - began < 60 * minutes:
            for name, target in targets.items():
                outcome = try_one(target, root / "copy", random.randrange(2**48))
                if outcome not in ("read", "refused"):
                    failures.append(f"{name}: {outcome}")
                    print(failures[-1])
                    outcome = "failed"
                tried[name][outcome] += 1
    total = sum(sum(counts.values()) for counts in tried.values())
    results = {
        "minutes": minutes,
        "inputs_tried": total,
        "by_reader": {name: dict(counts) for name, counts in tried.items()},
        "failures": failures,
    }
    write_results("fuzz", results, {"failures / inputs": len(failures) / total})
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
