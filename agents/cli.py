"""The command `perceiver-obs`: one subcommand a job, each a dataclass of settings and a function that takes it."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Annotated, Any, Union

import tyro

from perceiver_obs.settings import describe, near_matches, take_defaults

PROGRAM = "perceiver-obs"
USAGE_ERROR = 2
DESCRIPTION = """Contexts for policies, from pixels to returns.
"perceiver-obs COMMAND --help" explains every setting of a command; --settings FILE.json takes them from a file, and
--debug shows the traceback of an error. Computes with one thread: set OMP_NUM_THREADS for more, on a machine that is
otherwise idle."""


@dataclass(frozen=True)
class Job:
    """Where a subcommand's settings and function are, as "module:name"; imported only when it is asked for."""

    settings: str
    function: str
    summary: str

    def settings_type(self) -> Any:
        """The dataclass of its settings."""
        return resolve_name(self.settings)


JOBS = {
    "fit": Job(
        "agents.training.settings:FitSettings",
        "agents.training.fit:fit",
        "collect, train, probe and report: a model of your own environment in a given time",
    ),
    "collect": Job(
        "envs.collection.settings:CollectSettings",
        "envs.collection.collect:collect",
        "collect rollouts of a dm_control task or any Gymnasium environment",
    ),
    "train-tokenizer": Job(
        "perceiver_obs.training.settings:TrainTokenizerSettings",
        "perceiver_obs.training.train_tokenizer:train_tokenizer",
        "train frames to tokens and back",
    ),
    "train-predictor": Job(
        "perceiver_obs.training.settings:TrainPredictorSettings",
        "perceiver_obs.training.train_predictor:train_predictor",
        "train the Perceiver whose contexts predict tokens",
    ),
    "train-policy": Job(
        "agents.training.settings:TrainPolicySettings",
        "agents.training.train_policy:train_policy",
        "train an SB3 policy on contexts, state or pixels",
    ),
    "evaluate": Job(
        "agents.training.settings:EvaluateSettings",
        "agents.training.evaluate:evaluate",
        "evaluate a trained policy",
    ),
    "benchmark": Job(
        "agents.benchmark.settings:BenchmarkSettings",
        "agents.benchmark.benchmark:benchmark",
        "compare contexts with baselines on DMControl-100k or in any environment",
    ),
    "generate": Job(
        "agents.visualize.settings:GenerateSettings",
        "agents.visualize.generate:generate",
        "continue an episode: a picture and a GIF",
    ),
    "probe": Job(
        "perceiver_obs.evaluation.settings:ProbeSettings",
        "perceiver_obs.evaluation.probe:probe",
        "measure how much of the state and the reward contexts carry",
    ),
    "watch": Job(
        "agents.visualize.settings:WatchSettings",
        "agents.visualize.watch:watch",
        "animate an episode as a model sees it",
    ),
    "report": Job(
        "perceiver_obs.reporting.report:ReportSettings",
        "perceiver_obs.reporting.report:report",
        "put several runs together into one HTML page",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code: 0, 2 for wrong input, 128 + signal when interrupted.

    Wrong input is reported in one line; `--debug`, or PERCEIVER_OBS_DEBUG=1, shows where it came from. `--help`, and
    options that no setting has, exit as tyro does, with code 0 and 2.
    """
    # Several threads on a busy machine take many times as long as one. Read as torch is imported, which is later.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if os.getcwd() not in sys.path:  # where modules of a "module:ID" or "module:Class" are looked for, too
        sys.path.append(os.getcwd())
    if not sys.stderr.isatty():  # in a log file a progress bar draws itself once in ten seconds
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("PERCEIVER_OBS_DEBUG", "0") not in ("", "0")
    name, *options = [argument for argument in arguments if argument != "--debug"] or [""]
    if name and name not in JOBS and not name.startswith("-"):  # tyro would not say which is meant
        print(f"{PROGRAM}: unknown command {name!r}; {near_matches(name, JOBS)}", file=sys.stderr)
        return USAGE_ERROR
    try:
        settings = parse_command(name, options)
        resolve_name(JOBS[name].function)(settings)
    except KeyboardInterrupt as interrupt:
        print(f"\n{PROGRAM} {name}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal_number", signal.SIGINT)
    except (ValueError, OSError, FloatingPointError, RuntimeError, ImportError) as error:
        if debug:
            raise
        print(f"{PROGRAM} {name}: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


@dataclass
class NotAskedFor:
    """Stands for the settings of the other subcommands, so that these need not be imported."""


def parse_command(name: str, options: Sequence[str]) -> Any:
    """The settings of subcommand `name`; without one, or with `--help` in its place, prints what there is and exits."""
    choices: list[Any] = []
    for each, job in JOBS.items():
        if each == name:
            kind = job.settings_type()
            default, options = take_defaults(kind, options, f"{PROGRAM} {name}")
            choice = tyro.conf.subcommand(name, default=default, description=describe(kind))
            choices.append(Annotated[kind, choice])
        else:
            choices.append(Annotated[NotAskedFor, tyro.conf.subcommand(each, description=job.summary)])
    command: Any = Union[tuple(choices)]  # noqa: UP007 (as many as there are)
    return tyro.cli(command, prog=PROGRAM, description=DESCRIPTION, args=[*([name] if name else []), *options])


if __name__ == "__main__":
    sys.exit(main())
