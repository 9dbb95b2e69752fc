"""Damaged files against every reader, for ten minutes: each is read or refused with a clear error.

Writes `results/fuzz.json`; run it by `make fuzz`. The kinds of damage are those of `tests/damaged_files.py`.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from measure import write_results

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from damaged_files import make_targets, read_damaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    began, failures = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        targets = make_targets(root / "whole")
        tried = {name: Counter() for name in targets}
        while time.monotonic() - began < 60 * minutes:
            for name, target in targets.items():
                seed = random.randrange(2**48)
                try:
                    outcome = read_damaged(target, root / "copy", seed)
                except Exception as error:
                    outcome = "failed"
                    failures.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
                    print(failures[-1])
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
