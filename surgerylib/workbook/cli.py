"""The command line: `python -m surgerylib run | check | features | train | compare | scenes`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from ..errors import SurgeryError

# the rest is imported where it is used: torch and papermill take seconds that `--help` need not wait for

SHORTHANDS = ("dataset", "split", "model", "checkpoint", "stage")
_SAME_INTERRUPT_SECONDS = 5.0
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 when all went well, 1 when a notebook failed, 2 for bad input, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    with _ctrl_c_once():
        try:
            status = arguments.command(arguments) or 0
            sys.stdout.flush()
            return status
        except SurgeryError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            # not of a file of ours: of what prints, or of a library's own
            print(f"error: {error.filename or 'output'}: {error.strerror}; free the disk", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the same command goes on where this stopped", file=sys.stderr)
            return 130


def shell(argv: Sequence[str] | None = None) -> int:
    """`main` for a process that ends behind it: its end must not add a line to the last one."""
    # threads of OpenMP that wait for each other sleep: by default they spin, and where something else wants the cores
    # each waits for a thread that waits for a core (beside one busy process a training took two to six times as long)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    status = main(argv)
    if status == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be stopped but the interpreter's end
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be printed would fail again
    return status


@contextlib.contextmanager
def _ctrl_c_once() -> Iterator[None]:
    """Let a Ctrl-C that follows another at once not stop the work of ending: the record, the kernel."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # ignored, as under nohup, or somebody else's
        return
    last = -_SAME_INTERRUPT_SECONDS

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SAME_INTERRUPT_SECONDS:
            last = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def _run(arguments: argparse.Namespace) -> int:
    from .run import run_workbook

    result = run_workbook(
        *_work(arguments), only=arguments.only, time_limit=arguments.time_limit * 60, force=arguments.force
    )
    print(result.index)
    return 0 if result.ok else 1


def _check(arguments: argparse.Namespace) -> None:
    from .check import check

    print(check(_work(arguments)[0], device="auto"))


def _features(arguments: argparse.Namespace) -> None:
    from .commands import features

    features(*_work(arguments), predict_only=arguments.predict)


def _train(arguments: argparse.Namespace) -> None:
    from .commands import train

    print(*train(*_work(arguments), resume=arguments.resume), sep="\n")


def _compare(arguments: argparse.Namespace) -> None:
    from .compare import compare_runs

    print(compare_runs(arguments.runs, arguments.out))


def _scenes(arguments: argparse.Namespace) -> None:
    from ..embedded import write_scenes

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "out")}
    print(write_scenes(arguments.out, **{name: value for name, value in given.items() if value is not None}))


def _work(arguments: argparse.Namespace) -> tuple[dict, Path]:
    """The parameters, with the command line's values over the configuration's, and the run's folder."""
    from ..files import PROJECT_ROOT
    from .parameters import apply_overrides, find_notebooks, known_parameters, load_config

    path = arguments.config or PROJECT_ROOT / "notebooks" / "configs" / "embedded.yaml"
    known = known_parameters(find_notebooks())
    given = vars(arguments)
    shorthands = [f"{name}={given[name]}" for name in SHORTHANDS if given.get(name) is not None]
    out = given.get("out") or PROJECT_ROOT / "reports" / path.stem
    return apply_overrides(load_config(path), shorthands + arguments.parameters, known), out.expanduser().resolve()


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (minutes := float(text)) > 0:
            return minutes
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="surgerylib", description="The CLIP Surgery workbook.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="YAML", help="parameter file (default: configs/embedded.yaml)")
    shared.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE",
                        help="one notebook parameter, its value in YAML; may be repeated")  # fmt: skip
    shared.add_argument("--dataset", help="dataset folder, or 'embedded'")
    shared.add_argument("--split", help="train, val, trainval or test")
    shared.add_argument("--model", help="a ViT that open_clip knows, or 'embedded'")
    shared.add_argument("--checkpoint", help="weights: a file, an open_clip tag, or hf:owner/repo/file")

    placed = argparse.ArgumentParser(add_help=False)
    folder = "the run's folder (default: reports/NAME of the config)"
    placed.add_argument("--out", type=Path, metavar="DIR", help=folder)

    def command(name: str, work: Callable, help_: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, parents=parents, help=help_)
        parser.set_defaults(command=work)
        return parser

    run = command("run", _run, "execute the notebooks and write the HTML report", shared, placed)
    run.add_argument("--only", metavar="NN", help="only these notebooks: 01 or 01,03")
    run.add_argument("--force", action="store_true", help="execute even what is up to date")
    run.add_argument("--time-limit", type=_minutes, default=1440.0, metavar="MINUTES",
                     help="for each notebook as a whole (default: 1440, a day)")  # fmt: skip

    command("check", _check, "read data and model, run the self-check, change nothing", shared)

    staged = argparse.ArgumentParser(add_help=False)
    staged.add_argument("--stage", help="heatmap, localizer or both (default: the configuration's, else both)")
    trained_on = "compute what the adapters and the localiser are trained on"
    features = command("features", _features, trained_on, shared, placed, staged)
    features.add_argument("--predict", action="store_true", help="only say how much disk they need")

    trained = "train what notebook 03 trains: heatmap adapters, localiser"
    train = command("train", _train, trained, shared, placed, staged)
    train.add_argument("--resume", action="store_true", help="go on with a training of these settings that was stopped")

    compare = command("compare", _compare, "put finished runs side by side on one page")
    folder = "a run's folder; differences are to the first"  # none at all is an error with the other bad input
    compare.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=folder)
    compare.add_argument("--out", type=Path, metavar="FILE", help="the page (default: reports/compare-NAME-NAME.html)")

    scenes = command("scenes", _scenes, "draw aerial scenes in DIOR's layout")
    scenes.add_argument("--out", type=Path, required=True, metavar="DIR")
    scenes.add_argument("--seed", type=int, help="another seed gives other scenes (default: 0)")
    for split in ("train", "val", "test"):
        scenes.add_argument(f"--{split}", dest=f"num_{split}", type=int, metavar="N", help=f"number of {split} images")
    scenes.add_argument("--size", type=int, metavar="PIXELS", help="side of an image")
    return parser
