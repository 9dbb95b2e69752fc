"""A million streaming steps over 16 rows: memory flat, contexts still those of the offline computation.

Writes `results/soak.json`; run it by `make soak`, about twenty minutes on one core.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from measure import write_results

from perceiver_obs import CausalPerceiverIO

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from soaking import soak

ROWS, STEPS = 16, 1_000_000


def main() -> None:
    torch.set_num_threads(1)
    model = CausalPerceiverIO.from_pretrained("dmc-small")
    began = time.monotonic()
    found = soak(model, ROWS, STEPS // ROWS)
    settled = found.memory_mb[len(found.memory_mb) // 4 :]
    results = {"rows": ROWS, **asdict(found), "minutes": round((time.monotonic() - began) / 60, 1)}
    write_results("soak", results, {"memory at the end / after a quarter": settled[-1] / settled[0]})


if __name__ == "__main__":
    main()
