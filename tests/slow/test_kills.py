"""SIGKILL and Ctrl-C at random moments over the whole workbook: map computation, cache, training, rendering.

Every rerun finishes, nothing finished is done twice, and what lies there in the end is what an undisturbed run leaves.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from disturbed import INTERRUPTED, Command, assert_whole, leftovers
from same_results import differing

from surgerylib.engine.training import progress_of
from surgerylib.files import PROJECT_ROOT

pytestmark = pytest.mark.slow
SEED = 20
NOTEBOOKS = {path.stem[:2]: path.stem for path in sorted((PROJECT_ROOT / "notebooks").glob("0*.ipynb"))}
# short enough for every push: maps, and a head trained on them
FEW = {"stage": "localizer", "kinds": ["standard", "vv_mixed"], "num_examples": 1}


def stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


class Workbook:
    """The real notebooks in the small configuration, run into one folder by the command line."""

    def __init__(self, folder: Path, parameters: Mapping[str, object]) -> None:
        self.out, self.logs, self.config = folder / "out", folder / "logs", folder / "small.yaml"
        folder.mkdir(parents=True)
        self.config.write_text(yaml.safe_dump(dict(parameters)))

    def start(self, only: Sequence[str]) -> Command:
        return Command(self.logs, "run", "--config", self.config, "--out", self.out, "--only", ",".join(only))

    def undisturbed(self, only: Sequence[str]) -> dict[str, tuple[float, float]]:
        """A run to its end; seconds of each notebook from its first line to its last, and of its page among them."""
        command, seconds = self.start(only), {}
        for name in (NOTEBOOKS[number] for number in only):
            clock = []
            for reached in (
                lambda name=name: command.says(f"{name}: started"),
                (self.out / f"{name}.ipynb").exists,
                lambda name=name: command.says(f"{name}: ok"),
            ):
                command.wait_until(reached, 600)
                clock.append(time.monotonic())
            seconds[name[:2]] = clock[2] - clock[0], clock[2] - clock[1]
        assert command.end() == 0, command.errors
        assert command.errors == []
        return seconds

    def killed(self, only: Sequence[str], seconds: float, *, in_page: bool, everything: bool) -> bool:
        """Kill a run so long after its last notebook began, or its page; whether it had not ended before."""
        name = NOTEBOOKS[only[-1]]
        page = self.out / f"{name}.ipynb"
        earlier = page.stat().st_ino if page.exists() else None
        with self._going_on(only) as command:
            command.wait_until(lambda: command.says(f"{name}: started"), 600)
            if in_page:
                command.wait_until(lambda: page.exists() and page.stat().st_ino != earlier, 600)
            time.sleep(seconds)
            running = command.process.poll() is None
            command.kill(everything=everything)
            command.assert_alone_gone(30)
        return running and not command.says(f"{name}: ok")

    def finish(self, only: Sequence[str]) -> None:
        with self._going_on(only) as command:
            assert command.end(900) == 0, command.errors
        assert leftovers(self.out) == []

    @contextmanager
    def _going_on(self, only: Sequence[str]) -> Iterator[Command]:
        """A run that takes up what the one before left: nothing is done twice, and what lies there then is whole."""
        before, done, command = self.finished(), self.done(), self.start(only)
        yield command
        assert command.errors == []
        assert_whole(self.out)
        assert {path: stamp(path) for path in before} == before
        assert not any(command.says(f"{name}: started") for name in done)

    def done(self) -> list[str]:
        """Notebooks that are."""
        record = self.out / "run.json"
        entries = json.loads(record.read_text())["notebooks"] if record.exists() else []
        return [e["name"] for e in entries if e["status"] == "ok" and (self.out / f"{e['name']}.html").exists()]

    def finished(self) -> dict[Path, tuple[int, int]]:
        """Files that no rerun has a reason to write again: inode and time."""
        paths = [*self.out.glob("cache/*/[!.]*.np[yz]")]
        for state in self.out.glob("cache/*training-*/resume.pt"):
            if (progress_of(state.parent) or (0, False))[1]:
                paths += state.parent.glob("[!.]*")
        if done := self.done():
            for entry in json.loads((self.out / "run.json").read_text())["notebooks"]:
                if entry["name"] in done:
                    names = [*entry["files"], f"{entry['name']}.ipynb", f"{entry['name']}.html"]
                    paths += [self.out / name for name in names]
        return {path: stamp(path) for path in paths}


def kill_and_compare(folder: Path, parameters: Mapping[str, object], kills: Mapping[str, int]) -> None:
    """A run to its end; another, killed so often in each notebook; the two folders hold the same."""
    draw, only, n_killed = random.Random(SEED), list(kills), 0
    whole, killed = Workbook(folder / "whole", parameters), Workbook(folder / "kills", parameters)
    durations = whole.undisturbed(only)
    for place, number in enumerate(only):
        for kill in range(kills[number]):
            # the last of several in its page; in turns the power fails, and the command alone is killed
            in_page = kill == kills[number] - 1 > 0
            seconds = draw.uniform(0, durations[number][in_page])
            everything = bool(n_killed % 2)
            while not killed.killed(only[: place + 1], seconds, in_page=in_page, everything=everything):
                # what is there already made it faster than the undisturbed run: once more, earlier
                (killed.out / f"{NOTEBOOKS[number]}.html").unlink()
                seconds /= 2
            n_killed += 1
    killed.finish(only)
    assert n_killed == sum(kills.values())
    assert leftovers(killed.out) == []
    assert assert_whole(killed.out) == assert_whole(whole.out) > 20
    assert differing(whole.out, killed.out) == []


@pytest.mark.ci
def test_a_run_that_is_killed_twice_ends_with_the_files_of_an_undisturbed_one(parameters, tmp_path):
    kill_and_compare(tmp_path, {**parameters, **FEW}, {"01": 1, "03": 1})


def test_a_run_that_is_killed_twenty_times_ends_with_the_files_of_an_undisturbed_one(parameters, tmp_path):
    kill_and_compare(tmp_path, parameters, dict.fromkeys(NOTEBOOKS, 4))


def positions(out: Path) -> dict[str, tuple[int, int]]:
    """How far each training of a folder has come: epochs, steps of the next."""
    states = {path.parent.name: torch.load(path, weights_only=True) for path in out.glob("cache/*training-*/resume.pt")}
    return {name: (state["epoch"], state["done"]) for name, state in states.items()}


def without_bars(lines: Sequence[str]) -> list[str]:
    """What is said on stderr besides progress."""
    parts = [part.strip() for line in lines for part in line.split("\r")]
    return [part for part in parts if part and "%|" not in part and not re.search(r"\d\d:\d\d", part)]


@pytest.mark.parametrize("words", [["run", "--only", "01,03"], ["train"]], ids=lambda words: words[0])
def test_ctrl_c_at_any_moment_is_one_line_and_the_same_command_goes_on(parameters, tmp_path, words):
    draw = random.Random(SEED)
    given = {**parameters, **FEW, "epochs": 20}
    book, out = Workbook(tmp_path / "whole", given), tmp_path / "stops" / "out"

    def start(out: Path) -> Command:
        more = ["--resume"] if words[0] == "train" and positions(out) else []
        command = Command(
            book.logs, *words, "--config", book.config, "--out", out, *more, project=PROJECT_ROOT,
            prelude="print('begun', flush=True)",
        )  # fmt: skip
        command.wait_until(lambda: command.says("begun"))
        return command

    command, begun = start(book.out), time.monotonic()
    assert command.end() == 0, command.errors
    seconds, stopped = time.monotonic() - begun, 0
    for number in range(8):
        command = start(out)
        time.sleep(0.02 + draw.uniform(0, seconds * (0.9 if number % 4 else 0.2)))
        command.interrupt(times=1 + number % 2)
        status = command.end(60)
        command.assert_alone_gone(15)
        assert_whole(out)
        # by the signal itself where all was done, and the interpreter on its way out
        assert status in (0, 130, -signal.SIGINT), command.errors
        if status:
            assert without_bars(command.errors) == [INTERRUPTED] * (status == 130)
        stopped += status == 130
    assert stopped
    command = start(out)
    assert command.end() == 0, command.errors
    assert leftovers(out) == []
    assert differing(book.out, out) == []
