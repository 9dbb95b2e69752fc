"""Coverage-guided fuzzing of every reader by atheris: a file of a whole directory is replaced by made-up bytes.

Writes `results/atheris.json` as it goes; run it by `make atheris`. The first byte of an input chooses the reader, the
second the file; anything but a clear error or a result ends the run with a crash file.
"""

import argparse
import atexit
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
with atheris.instrument_imports(include=["envs", "perceiver_obs", "agents", "safetensors", "zstandard"]):
    from damaged_files import make_targets
from measure import write_results

SAVE_EVERY = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    targets = list(make_targets(folder / "whole").items())
    files = [sorted(p for p in target.directory.rglob("*") if p.is_file()) for _, target in targets]
    whole = {file: file.read_bytes() for each in files for file in each}
    corpus = folder / "corpus"
    corpus.mkdir()
    for reader, each in enumerate(files):
        for number, file in enumerate(each):
            (corpus / f"{reader}-{number}").write_bytes(bytes([reader, number]) + whole[file])
    began, tried = time.monotonic(), Counter()

    def save() -> None:
        counts = {f"{targets[reader][0]}, {outcome}": count for (reader, outcome), count in sorted(tried.items())}
        seconds = round(time.monotonic() - began)
        write_results("atheris", {"seconds": seconds, "inputs_tried": sum(tried.values()), "by_reader": counts}, {})

    def read(data: bytes) -> None:
        if len(data) < 2:
            return
        reader = data[0] % len(targets)
        file = files[reader][data[1] % len(files[reader])]
        file.write_bytes(data[2:])
        try:
            targets[reader][1].read(targets[reader][1].directory)
            tried[reader, "read"] += 1
        except (ValueError, OSError):
            tried[reader, "refused"] += 1
        finally:
            file.write_bytes(whole[file])
        if sum(tried.values()) % SAVE_EVERY == 0:
            save()

    options = [f"-max_total_time={60 * minutes:.0f}", "-rss_limit_mb=6000", "-timeout=60", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
