"""What the explorer's answers cost in the kernel, computing and drawing apart, by one stock forward of one image.

    python benchmarks/explorer.py [--model ViT-B-32] [--rounds 20]

Random weights, an 800 x 800 scene, the 20 classes of DIOR: the time does not depend on values. Each line is timed in
turns with the stock model's `encode_image` of one image. What the browser adds is measured by the browser tests.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import harness
import torch

from surgerylib.datasets.images import read_image
from surgerylib.embedded.scenes import write_scenes
from surgerylib.errors import SurgeryWarning
from surgerylib.explorer.app import Explorer
from surgerylib.explorer.app import drawing as view
from surgerylib.explorer.controls import ALL_KINDS
from surgerylib.explorer.view_model import look, mask_outline
from surgerylib.extraction import BoxSettings
from surgerylib.figures import figure_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SurgeryWarning)
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder) / "scenes", num_train=1, num_val=1, num_test=2, size=800)
        measure(Explorer(dataset=str(scenes), model=options.model, checkpoint="random", device="cpu"), options.rounds)


def measure(explorer: Explorer, rounds: int) -> None:
    explorer.wait()
    exploration, controls = explorer._exploration, explorer.controls
    clip, subject = exploration.clip, explorer.shown.subject
    pixels = clip.preprocess(subject.image)[None]
    percentiles = itertools.cycle((60.0, 75.0, 90.0, 95.0))
    numbers = itertools.count()

    @torch.no_grad()
    def stock() -> None:
        clip.model.encode_image(pixels)

    def set_percentile() -> None:
        controls.percentile.value = next(percentiles)

    def new_image() -> None:
        controls.next.click()
        explorer.wait()

    def ask(question) -> Callable[[], None]:
        def call() -> None:
            boxes = BoxSettings(percentile=next(percentiles))
            exploration.ask(replace(question, setting=replace(question.setting, boxes=boxes)))

        return call

    def new_words() -> None:
        controls.words.value = f"red roof {next(numbers)}"

    def point() -> None:
        number = next(numbers)
        explorer.stage.photo.pointed = [number % 7, number // 7 % 7]

    def line(name: str, call: Callable[[], object]) -> None:
        print(harness.compare(name, call, "stock encode_image of one image", stock, rounds=rounds).line(), flush=True)

    print(f"{clip.name}, {torch.get_num_threads()} threads, {rounds} rounds")
    print(harness.HEAD)
    shown = explorer.shown
    answer = shown.answers[0]
    print("computing")
    line("image: read, both paths, all layers, attention", lambda: look(clip, read_image(subject.path)))
    line("phrase: text tower", lambda: exploration.text((f"blue barn {next(numbers)}",)))
    line("threshold: boxes and IoU of one kind", ask(shown.question))
    line("of which the outline of the mask", lambda: mask_outline(answer.shown, BoxSettings()))
    print("drawing")
    line("photograph as JPEG", lambda: view.photo_bytes(subject.image))
    line("overlay as JPEG", lambda: view.overlay_bytes(answer.shown))

    def write() -> None:
        view.found_shapes(answer)
        view.outline_points(answer)
        view.truth_table([answer], shown.own, shown.against)

    line("boxes, outline and table as text", write)
    line("saved PNG", lambda: figure_bytes(view.figure(shown), "png"))
    print("all of it, from the control's value to the last message")
    line("threshold, one kind", set_percentile)
    line("patch pointed at", point)
    controls.kind.value = ALL_KINDS
    line("threshold, four kinds", set_percentile)
    line("image, four kinds", new_image)
    controls.ask.value = "both"
    line("phrase among the classes, four kinds", new_words)
    controls.kind.value, controls.ask.value = "vv_mixed", "own words"
    line("phrase, one kind", new_words)
    line("image, one kind", new_image)


if __name__ == "__main__":
    main()
