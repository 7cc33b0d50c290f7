"""The loop itself on a small task, and the localiser trained by it: resume, kills, losses of one's own, bad input."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from refusals import refused
from tiny_models import load_tiny, write_model

from surgerylib.datasets import load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import training as training_module
from surgerylib.engine.adapter_training import AdapterSettings
from surgerylib.engine.caches import FeatureCache
from surgerylib.engine.feature_batches import BatchReader
from surgerylib.engine.localizer_training import (
    LocalizerSettings,
    LocalizerTask,
    localize,
    predict,
    summarise,
    train_localizer,
)
from surgerylib.engine.tasks import Task
from surgerylib.engine.training import Schedule, backward, fit, folder_of, progress_of
from surgerylib.errors import CacheError, CheckpointError, OutputError, ParameterError, TrainingError, UnknownClassError
from surgerylib.files import only_process
from surgerylib.localizer import load_localizer
from surgerylib.losses import gt_class_localization_loss

PICTURE = 32
SETTINGS = LocalizerSettings(grid_size=4, training_batch_size=3)
SCHEDULE = Schedule(epochs=3, warmup_epochs=0.5)


class Line(Task):
    """A task with one weight: the loop on its own."""

    name, criterion, steps = "line", "val", 4

    def __init__(self, loss: str | None = "square") -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.identity = {"trained": "line", "loss": loss}
        self.calls = 0

    def batches(self, epoch: int, first: int) -> Iterator[torch.Tensor]:
        yield from torch.linspace(0.5, float(epoch), self.steps * 4).reshape(self.steps, 4, 1)[first:]

    def loss(self, batch):
        self.calls += 1
        total = (self.model(batch) - 3 * batch).square().mean()
        return total, {"loss": (float(total.detach()), 1), "nothing": (0.0, 0)}

    def validate(self) -> dict[str, float]:
        return {"val": -abs(self.weight - 3)}

    @property
    def weight(self) -> float:
        return float(self.model.weight.detach())

    def describe(self, batch) -> str:
        return "a line"

    def save(self, path, weights, about) -> None:
        path.write_bytes(safetensors.torch.save(dict(weights)))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def same_weights(a: Path, b: Path) -> bool:
    mine, theirs = weights_of(a), weights_of(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# ------------------------------------------------------------------------------------------------ the schedule


def test_warmup_counted_in_steps_and_stepped_by_epoch_must_not_come_back():
    """The earlier study's rate never left the first 0.7 % of the warm-up."""
    schedule = Schedule(epochs=10, learning_rate=1.0, min_learning_rate=0.1, warmup_epochs=2)
    rates = [schedule.rate(step, steps_per_epoch=50) for step in range(500)]
    assert rates[0] == pytest.approx(1 / 100)
    assert rates[99] == pytest.approx(1.0)  # the whole rate at the end of the warm-up, in steps
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert (np.diff(rates[:100]) > 0).all()
    assert (np.diff(rates[100:]) < 0).all()
    middle = 100 + (499 - 100) / 2
    assert schedule.rate(round(middle), 50) == pytest.approx(0.55, abs=0.005)


def test_the_rates_used_are_those_of_the_schedule(tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: seen.append(self.param_groups[0]["lr"]) or step(self))
    run = fit(Line(), SCHEDULE, tmp_path)
    assert seen == [SCHEDULE.rate(k, 4) for k in range(12)]
    assert run.history["learning_rate"].iloc[1:].tolist() == seen[3::4]
    assert Schedule(epochs=1, learning_rate=0.5, warmup_epochs=0).rate(0, 1) == 0.5


def test_short_runs_shorten_the_warm_up_too():
    short = Schedule(epochs=40, warmup_epochs=2.0, patience=3).short(10)
    assert (short.epochs, short.warmup_epochs, short.patience) == (10, 0.5, None)


@pytest.mark.parametrize(
    ("of", "wrong"),
    [
        *((Schedule, wrong) for wrong in (
            {"epochs": 0}, {"epochs": 2.0}, {"patience": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan},
            {"weight_decay": -1}, {"min_learning_rate": 1.0}, {"warmup_epochs": 40}, {"warmup_epochs": True},
        )),
        *((LocalizerSettings, wrong) for wrong in (
            {"grid_size": 0}, {"training_batch_size": None}, {"seed": -1}, {"l1_weight": 0, "giou_weight": 0},
            {"positive_iou": 1.0}, {"inputs": ()}, {"inputs": ("text",)}, {"assign": "nearest"},
            {"seen_classes": "ship"},
        )),
        *((AdapterSettings, wrong) for wrong in (
            {"rank": 2.0}, {"training_batch_size": 0}, {"seed": None}, {"localization_weight": math.nan},
            {"sparsity_weight": "1"}, {"positive_weight": 0}, {"positive_weight": math.inf}, {"unseen_classes": "ship"},
        )),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(of, wrong):
    refused(lambda: of(**wrong), ParameterError, next(iter(wrong)))


def test_three_losses_of_no_weight():
    weights = dict.fromkeys(("classification_weight", "localization_weight", "sparsity_weight"), 0)
    refused(lambda: AdapterSettings(**weights), ParameterError, "all three losses are 0")  # the anchor alone is none


# --------------------------------------------------------------------------------------------------- the loop


def test_any_task_can_be_trained(tmp_path):
    task = Line()
    run = fit(task, Schedule(epochs=60, learning_rate=0.3), tmp_path)
    assert task.weight == pytest.approx(3, abs=0.05)
    assert run.history["nothing"].isna().all()
    assert float(weights_of(run.best)["weight"]) == pytest.approx(3, abs=0.05)


def interrupted(task: Line, at: str, number: int) -> Line:
    """Ctrl-C in the `number`-th call."""
    method, calls = getattr(task, at), []

    def stopped(*args):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return method(*args)

    setattr(task, at, stopped)
    return task


@pytest.mark.parametrize(
    ("at", "number", "step"), [("loss", 1, 0), ("loss", 7, 6), ("validate", 1, None), ("validate", 3, 4)]
)
def test_ctrl_c_keeps_the_work_and_the_run_ends_with_the_same_weights(tmp_path, at, number, step, capsys):
    whole = fit(Line(), SCHEDULE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted(Line(), at, number), SCHEDULE, tmp_path / "stopped")
    task = Line()
    run = fit(task, SCHEDULE, tmp_path / "stopped")
    assert run.resumed_at == step
    assert task.calls == 12 - (step or 0)
    assert same_weights(run.last, whole.last)
    assert same_weights(run.best, whole.best)
    pd.testing.assert_frame_equal(run.history, whole.history, check_exact=True)
    said = capsys.readouterr().out
    assert ("taken up behind epoch" in said and "loss square" in said) == (step is not None)


def test_ctrl_c_in_the_middle_of_an_optimisers_step_loses_the_epoch_and_no_more(tmp_path, monkeypatch):
    whole = fit(Line(), SCHEDULE, tmp_path / "whole")
    step, calls = torch.optim.AdamW.step, []

    def torn(self):
        calls.append(1)
        step(self)
        if len(calls) == 7:
            raise KeyboardInterrupt  # the weights have moved, the position has not

    monkeypatch.setattr(torch.optim.AdamW, "step", torn)
    with pytest.raises(KeyboardInterrupt):
        fit(Line(), SCHEDULE, tmp_path / "torn")
    monkeypatch.undo()
    run = fit(Line(), SCHEDULE, tmp_path / "torn")
    assert run.resumed_at == 4
    assert same_weights(run.last, whole.last)


def test_bug_a_quick_training_that_was_interrupted_left_its_bar_without_an_end_of_line(tmp_path, capsys):
    """What the command line then said stood behind the bar."""
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted(Line(), "validate", 4), Schedule(epochs=60), tmp_path)
    said = capsys.readouterr().err
    assert not said or said.endswith("\n")


def test_a_finished_training_is_not_done_again(tmp_path):
    run = fit(Line(), SCHEDULE, tmp_path, keep_epochs=(0, 3))
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("[!.]*")}
    task = Line()
    again = fit(task, SCHEDULE, tmp_path, keep_epochs=(0, 3))
    assert (task.calls, again.resumed_at, again.folder) == (0, 12, run.folder)
    assert {path: path.stat().st_mtime_ns for path in run.folder.glob("[!.]*")} == before
    assert progress_of(run.folder) == (3, True)
    assert progress_of(tmp_path) is None
    run.best.unlink()
    run.last.unlink()
    assert same_weights(fit(Line(), SCHEDULE, tmp_path, keep_epochs=(0, 3)).last, run.kept(3))
    run.kept(0).unlink()
    with pytest.raises(CheckpointError, match=r"epoch-000\.safetensors is gone"):
        fit(Line(), SCHEDULE, tmp_path, keep_epochs=(0, 3))


def test_early_stop(tmp_path):
    def run():
        task, values = Line(), iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
        task.validate = lambda: {"val": next(values)}
        return fit(task, Schedule(epochs=20, patience=2), tmp_path)

    for found in (run(), run()):
        assert found.stopped_early
        assert found.history["epoch"].tolist() == [0, 1, 2, 3]
        assert found.best_epoch == 1


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_weights(tmp_path, where):
    task = Line()
    loss = task.loss

    def poisoned(batch):
        total, figures = loss(batch)
        if task.calls == 7 and where == "gradient":
            total.register_hook(lambda gradient: gradient * math.inf)
        return (total * math.nan if task.calls == 7 and where == "loss" else total), figures

    task.loss = poisoned
    refused(lambda: fit(task, SCHEDULE, tmp_path), TrainingError, r"epoch 2, batch 3 of 4 \(a line\)")
    folder = folder_of(task, SCHEDULE, tmp_path)
    assert progress_of(folder) == (1, False)
    assert weights_of(folder / "best.safetensors")["weight"].isfinite()
    kept = torch.load(folder / "resume.pt", weights_only=True)["model"]["weight"]  # what a rerun goes on from
    assert float(kept) == task.weight


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = fit(Line(), SCHEDULE, tmp_path).folder / "resume.pt"
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    refused(lambda: fit(Line(), SCHEDULE, tmp_path), CheckpointError, r"resume\.pt cannot be read")


def test_hostile_checkpoint_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    folder = folder_of(Line(), SCHEDULE, tmp_path)
    folder.mkdir()
    (folder / "resume.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(CheckpointError, match="cannot be read"):
        fit(Line(), SCHEDULE, tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_training_of_something_else_is_refused(tmp_path):
    run = fit(Line(), SCHEDULE, tmp_path)
    other = Line("another")
    shutil.copytree(run.folder, folder_of(other, SCHEDULE, tmp_path))
    with pytest.raises(CheckpointError, match=r"something else \(loss: \"square\" there, \"another\" here"):
        fit(other, SCHEDULE, tmp_path)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    folder = folder_of(Line(), SCHEDULE, tmp_path)
    with only_process(folder, "trains"), pytest.raises(OutputError, match=r"another process \(\d+\) trains"):
        fit(Line(), SCHEDULE, tmp_path)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    write, written = training_module.atomic_write, []

    def full(path, content):
        written.append(path)
        if len(written) > 2:
            raise OutputError(f"{path} cannot be written: No space left on device; free the disk")
        return write(path, content)

    monkeypatch.setattr(training_module, "atomic_write", full)
    with pytest.raises(OutputError, match="No space left"):
        fit(Line(), SCHEDULE, tmp_path)
    monkeypatch.undo()
    assert fit(Line(), SCHEDULE, tmp_path).resumed_at == 4  # one epoch


# ------------------------------------------------------------------------------------------------- the localiser


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=10, num_val=4, num_test=1, size=96)


@pytest.fixture(scope="module")
def caches(tiny, root, tmp_path_factory) -> tuple[FeatureCache, FeatureCache]:
    folder = tmp_path_factory.mktemp("caches")
    both = [FeatureCache(tiny, load_dataset(root, split), folder, picture_size=PICTURE) for split in ("train", "val")]
    return tuple(cache.compute() for cache in both)


@pytest.fixture(scope="module")
def undisturbed(caches, tmp_path_factory):
    return train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path_factory.mktemp("undisturbed"))


def test_the_history_says_what_happened(undisturbed):
    task, run = undisturbed
    history = run.history
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert history["step"].tolist() == [epoch * task.steps for epoch in range(4)]
    figures = ["loss", "l1", "giou", "positives_per_box", "share_without_positive", "val_iou", "val_share_50"]
    assert set(figures) <= set(history.columns)
    assert history[figures].iloc[1:].notna().all(axis=None)
    assert history["loss"].iloc[-1] < history["loss"].iloc[1]
    assert run.best_epoch == history["val_iou"].idxmax()
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder / "history.parquet"), history)
    assert history["share_without_positive"].iloc[1:].max() == 0  # best_iou_or_center leaves no box out
    assert task.ever_positive.all()


def test_best_and_last_are_the_weights_that_were_validated(undisturbed, caches):
    task, run = undisturbed
    reader = BatchReader(caches[1])
    for path, epoch in ((run.best, run.best_epoch), (run.last, 3), (run.kept(0), 0), (run.kept(1), 1)):
        model, about = load_localizer(path, belongs_to=caches[1].belongs_to)
        assert about["epoch"] == epoch
        assert localize(model, reader)["oracle"].mean() == run.history["val_iou"].iloc[epoch]
        np.testing.assert_allclose(about["class_means"], task.class_means)
    assert same_weights(run.last, run.kept(3))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(undisturbed, caches, tmp_path):
    _, run = undisturbed
    state = torch.get_rng_state()
    task, again = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    assert run.last.read_bytes() == again.last.read_bytes()
    other = LocalizerTask(*caches, replace(SETTINGS, seed=1))
    assert not torch.equal(other.model.state_dict()["boxes.weight"], weights_of(run.kept(0))["boxes.weight"])
    assert not np.array_equal(*(next(of.batches(1, 0)).positions for of in (task, other)))


GOLDEN = [0.2339902172819856, 0.005250427876391527, 0.23088071051259418, 0.011019662620181468, 2.576055152298974]


def test_other_numbers_need_another_version(caches, tmp_path):
    """Whoever changes what a training gives counts `TRAINING_VERSION` up, and writes the new figures here."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, run = train_localizer(*caches, SETTINGS, Schedule(epochs=1, warmup_epochs=0.5), tmp_path)
    finally:
        torch.set_num_threads(n_threads)
    found = [*run.history[["val_iou", "val_peak_iou"]].to_numpy().flatten().tolist(), run.history["loss"].iloc[1]]
    assert (training_module.TRAINING_VERSION, found) == (1, pytest.approx(GOLDEN, abs=1e-6))


# a real process, killed by itself at a given optimiser step, or in the middle of writing a given checkpoint file
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tiny_models import load_tiny
from surgerylib.datasets import load_dataset
from surgerylib.engine.caches import FeatureCache
from surgerylib.engine.localizer_training import LocalizerSettings, train_localizer
from surgerylib.engine.training import Schedule
model, scenes, cached, out, place, number = sys.argv[1:]
clip = load_tiny(Path(model))
caches = [FeatureCache(clip, load_dataset(scenes, s), cached, picture_size=32).compute() for s in ("train", "val")]
left = [int(number)]
def count_down():
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
if place == "step":
    step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda self: (count_down(), step(self))
else:
    fsync = os.fsync
    os.fsync = lambda handle: (count_down() if place in os.readlink(f"/proc/self/fd/{handle}") else None, fsync(handle))
settings, schedule = LocalizerSettings(grid_size=4, training_batch_size=3), Schedule(epochs=3, warmup_epochs=0.5)
train_localizer(*caches, settings, schedule, out)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "epoch"), [("step", 7, 1), ("step", 11, 2), ("resume.pt", 3, 1), ("best.safetensors", 1, 3)]
)
def test_killed_and_gone_on_with_it_ends_with_the_same_weights(
    undisturbed, caches, tiny_folder, root, tmp_path, place, number, epoch
):
    _, run = undisturbed
    arguments = [tiny_folder, root, caches[0].folder.parent, tmp_path, place, number]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert progress_of(tmp_path / run.folder.name) == (epoch, False)
    task, again = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path)
    assert again.resumed_at == epoch * task.steps  # no more than the epoch was lost
    for name in ("last", "best"):
        assert same_weights(getattr(again, name), getattr(run, name)), name
    for epoch in (0, 1, 3):
        assert same_weights(again.kept(epoch), run.kept(epoch)), epoch
    pd.testing.assert_frame_equal(again.history, run.history, check_exact=True)
    assert task.ever_positive.all()


def test_gradients_that_add_up_as_the_threads_come_must_not_come_back(caches):
    """Indexing with [...] scatters its gradient with atomic additions: under load, two runs ended differently."""
    task = LocalizerTask(*caches, SETTINGS)
    total, _ = task.loss(next(task.batches(1, 0)))
    nodes, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += [following for following, _ in node.next_functions]
    names = {node.name() for node in nodes}
    assert "IndexSelectBackward0" in names
    assert "IndexBackward0" not in names


def test_a_box_that_never_has_a_positive_is_known(caches, tmp_path):
    settings = replace(SETTINGS, assign="best_iou", positive_iou=0.9)
    task, run = train_localizer(*caches, settings, Schedule(epochs=2), tmp_path)
    share = run.history["share_without_positive"].iloc[1:]
    assert share.min() > 0
    assert 1 - float(task.ever_positive.float().mean()) <= share.min() + 1e-9
    again, _ = train_localizer(*caches, settings, Schedule(epochs=2), tmp_path)
    assert torch.equal(again.ever_positive, task.ever_positive)  # over a restart too


def test_other_settings_are_other_trainings(caches, tmp_path):
    def folder(settings=SETTINGS, schedule=SCHEDULE, both=caches):
        return folder_of(LocalizerTask(*both, settings), schedule, tmp_path)

    others = [
        folder(replace(SETTINGS, inputs=("cam",))), folder(replace(SETTINGS, seed=1)),
        folder(replace(SETTINGS, augment=False)), folder(schedule=replace(SCHEDULE, epochs=5)),
        folder(both=caches[::-1]),
    ]  # fmt: skip
    assert len({folder(), *others}) == 6
    same = replace(SETTINGS, l1_weight=1), Schedule(epochs=3, warmup_epochs=0.5, weight_decay=1e-2, gradient_clip=1)
    assert folder(*same) == folder()  # 1 is 1.0


def test_the_grid_is_that_of_the_patches_unless_it_is_given(caches):
    assert LocalizerTask(*caches, LocalizerSettings()).model.grid == caches[0].clip.grid
    assert LocalizerTask(*caches, LocalizerSettings(grid_size=7)).model.grid == (7, 7)


def test_channels_without_a_box_are_left_out_of_training_alone(caches):
    task = LocalizerTask(*caches, SETTINGS)
    batch = next(task.batches(1, 0))
    part, whole = predict(task.model, batch), task.model(batch.pictures, batch.cam, batch.features)
    for image, labels in enumerate(batch.labels):
        asked = labels.unique()
        torch.testing.assert_close(part[image, asked], whole[image, asked], rtol=1e-5, atol=1e-6)
        others = [k for k in range(len(part[image])) if k not in asked]
        assert not part[image, others].any()


def test_without_augmentation_the_images_are_as_they_are(caches):
    task = LocalizerTask(*caches, replace(SETTINGS, augment=False))
    for batch in task.batches(1, 0):
        assert torch.equal(batch.pictures, task.reader.batch(batch.positions).pictures)


def test_every_box_has_its_row_with_head_and_baselines(undisturbed, caches):
    _, run = undisturbed
    model, about = load_localizer(run.best)
    frame = localize(model, BatchReader(caches[1]), np.array(about["class_means"]))
    truth = caches[1].dataset.boxes
    ordered = frame.sort_values("box_row")
    assert ordered[["image_id", "label"]].to_numpy().tolist() == truth[["image_id", "label"]].to_numpy().tolist()
    assert (frame["oracle"] >= frame["cam_peak"]).all()
    summary = summarise(frame).set_index(["method", "figure"])
    methods = ["oracle", "cam_peak", "whole_image", "centre_box", "class_mean"]
    assert list(dict.fromkeys(summary.reset_index()["method"])) == methods
    assert summary.loc[("oracle", "mean"), "value"] == pytest.approx(run.history["val_iou"].max())


# ------------------------------------------------------------------------------------------- a loss of one's own

SHRINK = 0.5


def of_shape(pred_boxes, boxes, labels):
    """A loss of the user's: boxes are to be small."""
    sides = pred_boxes[..., 2:] - pred_boxes[..., :2]
    return (sides - SHRINK).square().mean()


def test_a_loss_of_ones_own_is_trained_and_never_served_for_another(caches, tmp_path, monkeypatch, capsys):
    once = Schedule(epochs=1, warmup_epochs=0)
    _, plain = train_localizer(*caches, SETTINGS, once, tmp_path)
    task, own = train_localizer(*caches, SETTINGS, once, tmp_path, loss=of_shape)
    assert own.folder != plain.folder
    assert not same_weights(own.last, plain.last)
    assert own.history["loss"].notna().iloc[1]
    assert own.history["l1"].isna().all()
    capsys.readouterr()
    _, again = train_localizer(*caches, SETTINGS, once, tmp_path, loss=of_shape)
    assert again.resumed_at == task.steps
    assert f"loss {task.identity['loss'][:24]}" in capsys.readouterr().out
    monkeypatch.setattr(sys.modules[__name__], "SHRINK", 0.1)
    _, other = train_localizer(*caches, SETTINGS, once, tmp_path, loss=of_shape)
    assert other.resumed_at is None
    assert not same_weights(other.last, own.last)


def test_a_loss_that_cannot_be_told_apart_is_trained_and_not_kept(caches, tmp_path):
    something = object()

    def loss(pred_boxes, boxes, labels):
        return of_shape(pred_boxes, boxes, labels) if something else None

    once = Schedule(epochs=1, warmup_epochs=0)
    runs = [train_localizer(*caches, SETTINGS, once, tmp_path, loss=loss)[1] for _ in range(2)]
    assert runs[1].resumed_at is None
    assert not list(tmp_path.iterdir())
    assert same_weights(runs[0].last, runs[1].last)  # as long as the training is at hand
    folder = runs.pop().folder
    assert not folder.exists()


def test_the_packages_own_loss_given_by_hand_gives_the_same_step(caches):
    one, two = (
        LocalizerTask(*caches, SETTINGS, loss=loss)
        for loss in (None, lambda *a: gt_class_localization_loss(*a, assign="best_iou_or_center"))
    )
    for task in (one, two):
        backward(task, next(task.batches(1, 0)), clip=1.0)
    for mine, theirs in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, b, c: 3.0, "it gave 'float'"),
        (lambda p, b, c: p.mean().detach(), "without a gradient"),
        (lambda p, b, c: p, r"the loss must give a tensor of one number"),
    ],
)
def test_what_a_loss_must_give_is_said(caches, tmp_path, loss, message):
    refused(lambda: train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path, loss=loss), TrainingError, message)


# ---------------------------------------------------------------------------------------------------- bad input


def test_a_split_without_boxes(tiny, caches, tmp_path):
    train, val = (
        FeatureCache(tiny, replace(cache.dataset, boxes=cache.dataset.boxes.iloc[:0]), tmp_path, picture_size=PICTURE)
        for cache in caches
    )
    task = LocalizerTask(train.compute(), caches[1], SETTINGS)
    refused(lambda: fit(task, SCHEDULE, tmp_path / "x"), TrainingError, "no box to learn from")
    refused(lambda: LocalizerTask(caches[0], val.compute(), SETTINGS), TrainingError, "val has no box")


def test_features_of_different_things_are_not_trained_on_together(caches, root, tmp_path, undisturbed):
    clip = load_tiny(write_model(tmp_path / "other", seed=8))
    other = FeatureCache(clip, load_dataset(root, "val"), tmp_path, picture_size=PICTURE)
    refused(lambda: LocalizerTask(caches[0], other, SETTINGS), CacheError, "weights_sha256")
    refused(lambda: load_localizer(undisturbed[1].best, belongs_to=other.belongs_to), CheckpointError, "weights_sha256")
    refused(lambda: LocalizerTask(caches[0], caches[0], SETTINGS), ParameterError, "share 10 images")


def test_seen_classes(caches, tmp_path):
    data = caches[0].dataset
    counts = data.boxes["label"].value_counts()
    shared = next(name for name in counts.index if (caches[1].dataset.boxes["label"] == name).any())
    without = next(name for name in data.classes if name not in counts.index)
    settings = replace(SETTINGS, seen_classes=(shared.upper(),))  # any spelling
    task, run = train_localizer(*caches, settings, Schedule(epochs=2), tmp_path)
    with_box = data.images["image_id"].isin(data.boxes.loc[data.boxes["label"] == shared, "image_id"])
    assert set(task.reader.usable) == set(np.flatnonzero(with_box))
    assert not task.ever_positive.numpy()[(data.boxes["label"] != shared).to_numpy()].any()
    assert load_localizer(run.last)[1]["seen_classes"] == [shared]
    for names, error, message in (
        ((shared, without), ParameterError, f"{without}, without a box in the split train"),
        ((), ParameterError, "list of class names, or null"),
        (("zeppelin",), UnknownClassError, "nearest known"),
    ):
        settings = LocalizerSettings(seen_classes=names)
        refused(lambda settings=settings: LocalizerTask(*caches, settings), error, message)
