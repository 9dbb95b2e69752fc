"""The command `perceiver-obs`: one subcommand a job, each a dataclass of settings and a function that takes it."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from perceiver_obs.settings import parse_settings

USAGE_ERROR = 2


@dataclass(frozen=True)
class Job:
    """Where a subcommand's settings and function are; imported only when it runs."""

    module: str
    settings: str
    function: str
    summary: str


JOBS = {
    "collect": Job(
        "envs.collection.collect",
        "CollectSettings",
        "collect",
        "collect rollouts of a dm_control task or any Gymnasium environment",
    ),
    "train-tokenizer": Job(
        "perceiver_obs.training.train_tokenizer",
        "TrainTokenizerSettings",
        "train_tokenizer",
        "train frames to tokens and back",
    ),
    "train-predictor": Job(
        "perceiver_obs.training.train_predictor",
        "TrainPredictorSettings",
        "train_predictor",
        "train the Perceiver whose contexts predict tokens",
    ),
    "train-policy": Job(
        "agents.training.train_policy",
        "TrainPolicySettings",
        "train_policy",
        "train an SB3 policy on contexts, state or pixels",
    ),
    "evaluate": Job("agents.training.evaluate", "EvaluateSettings", "evaluate", "evaluate a trained policy"),
    "benchmark": Job(
        "agents.benchmark.benchmark",
        "BenchmarkSettings",
        "benchmark",
        "compare contexts with baselines on DMControl-100k",
    ),
    "generate": Job(
        "perceiver_obs.evaluation.generate", "GenerateSettings", "generate", "continue an episode: a picture and a GIF"
    ),
    "probe": Job(
        "perceiver_obs.evaluation.probe", "ProbeSettings", "probe", "measure how much of the state contexts carry"
    ),
    "watch": Job("agents.visualize.watch", "WatchSettings", "watch", "animate an episode as a model sees it"),
    "report": Job(
        "perceiver_obs.reporting.report", "ReportSettings", "report", "put several runs together into one HTML page"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code: 0, 2 for wrong input, 128 + signal when interrupted.

    Wrong input is reported in one line; `--debug`, or PERCEIVER_OBS_DEBUG=1, shows where it came from.
    """
    # Several threads on a busy machine take many times as long as one. Read as torch is imported, which is later.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("PERCEIVER_OBS_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else USAGE_ERROR
    if os.getcwd() not in sys.path:  # where modules of a "module:ID" or "module:Class" are looked for, too
        sys.path.append(os.getcwd())
    if not sys.stderr.isatty():  # in a log file a progress bar draws itself once in ten seconds
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    name, *options = arguments
    if name not in JOBS:
        from perceiver_obs.settings import near_matches

        print(f"perceiver-obs: unknown command {name!r}; {near_matches(name, JOBS)}", file=sys.stderr)
        return USAGE_ERROR
    try:
        run(name, options)
    except KeyboardInterrupt as interrupt:
        print(f"\nperceiver-obs {name}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal_number", signal.SIGINT)
    except (ValueError, OSError, FloatingPointError, RuntimeError, ImportError) as error:
        if debug:
            raise
        print(f"perceiver-obs {name}: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def run(name: str, options: Sequence[str]) -> None:
    """Parses a subcommand's options and runs it."""
    job = JOBS[name]
    module = import_module(job.module)
    settings = parse_settings(getattr(module, job.settings), options, prog=f"perceiver-obs {name}")
    getattr(module, job.function)(settings)


def usage() -> str:
    """The list of subcommands."""
    width = max(map(len, JOBS))
    lines = [f"  {name:{width}}  {job.summary}" for name, job in JOBS.items()]
    return "\n".join(
        [
            "usage: perceiver-obs COMMAND [options]",
            "",
            *lines,
            "",
            "perceiver-obs COMMAND --help explains every setting; --settings FILE.json takes them from a file;",
            "--debug shows the traceback of an error.",
            "Computes with one thread: set OMP_NUM_THREADS for more, on a machine that is otherwise idle.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
