"""The loop itself on a small task, and the localiser trained by it: resume, kills, early stop, bad input."""

from __future__ import annotations

import math
import random
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
from tiny_models import write_model

from surgerylib.clip import load_clip
from surgerylib.datasets import Dataset, load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine import training as training_module
from surgerylib.engine.caches import FeatureCache
from surgerylib.engine.feature_batches import BatchReader, turn_boxes
from surgerylib.engine.localizer_training import (
    LocalizerSettings,
    LocalizerTask,
    belongs_to,
    kept_epochs,
    localize,
    predict,
    summarise,
    train_localizer,
    training_folder,
)
from surgerylib.engine.side_by_side import Job, fit_side_by_side
from surgerylib.engine.streams import Streams
from surgerylib.engine.training import Schedule, fit, optimizer_of, progress_of, train_step
from surgerylib.errors import CacheError, CheckpointError, OutputError, ParameterError, TrainingError, UnknownClassError
from surgerylib.files import only_process
from surgerylib.localizer import load_localizer

PICTURE = 32
SETTINGS = LocalizerSettings(grid_size=4, batch_size=3)
SCHEDULE = Schedule(epochs=4, warmup_epochs=0.5)


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


def test_the_rates_used_are_those_of_the_schedule(caches, tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: seen.append(self.param_groups[0]["lr"]) or step(self))
    task, run = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path)
    assert seen == [SCHEDULE.rate(k, task.steps) for k in range(4 * task.steps)]
    assert run.history["learning_rate"].iloc[1:].tolist() == seen[task.steps - 1 :: task.steps]


def test_no_warmup_and_one_step():
    assert Schedule(epochs=1, learning_rate=0.5, warmup_epochs=0).rate(0, 1) == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": 2.0}, {"epochs": None},
        {"patience": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan},
        {"gradient_clip": 0}, {"weight_decay": -1}, {"min_learning_rate": 1.0}, {"warmup_epochs": 40},
        {"learning_rate": "1e-3"}, {"weight_decay": None}, {"warmup_epochs": True},
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        Schedule(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid_size": 0}, {"batch_size": 0}, {"batch_size": None}, {"seed": -1}, {"seed": None},
        {"l1_weight": -1}, {"l1_weight": 0, "giou_weight": 0},
        {"positive_iou": 1.0}, {"inputs": ()}, {"inputs": ("text",)}, {"assign": "nearest"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        LocalizerSettings(**wrong)


# ------------------------------------------------------------------------------------------------- the localiser


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=14, num_val=5, num_test=1, size=96)


def cache_of(clip, data: Dataset, folder: Path) -> FeatureCache:
    return FeatureCache(clip, data, folder, picture_size=PICTURE).compute()


@pytest.fixture(scope="module")
def caches(tiny, root, tmp_path_factory) -> tuple[FeatureCache, FeatureCache]:
    folder = tmp_path_factory.mktemp("caches")
    return tuple(cache_of(tiny, load_dataset(root, split), folder) for split in ("train", "val"))


@pytest.fixture(scope="module")
def undisturbed(caches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train_localizer(*caches, SETTINGS, SCHEDULE, folder)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def same_weights(a: Path, b: Path) -> bool:
    mine, theirs = weights_of(a), weights_of(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_history_says_what_happened(undisturbed, caches):
    task, run = undisturbed
    history = run.history
    assert history["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert history["step"].tolist() == [epoch * task.steps for epoch in range(5)]
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
    for path, epoch in ((run.best, run.best_epoch), (run.last, 4), (run.kept(0), 0), (run.kept(2), 2)):
        model, about = load_localizer(path, belongs_to=belongs_to(caches[1]))
        assert about["epoch"] == epoch
        assert localize(model, reader)["oracle"].mean() == run.history["val_iou"].iloc[epoch]
        np.testing.assert_allclose(about["class_means"], task.class_means)
    assert same_weights(run.last, run.kept(4))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(undisturbed, caches, tmp_path):
    _, run = undisturbed
    state = torch.get_rng_state()
    _, again = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    assert run.last.read_bytes() == again.last.read_bytes()
    other = LocalizerSettings(grid_size=4, batch_size=3, seed=1)
    _, different = train_localizer(*caches, other, SCHEDULE, tmp_path)
    assert not same_weights(run.last, different.last)


@pytest.mark.usefixtures("undisturbed")
def test_a_finished_training_is_not_done_again(undisturbed, caches):
    _, run = undisturbed
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("[!.]*")}
    _, again = train_localizer(*caches, SETTINGS, SCHEDULE, run.folder.parent)
    assert {path: path.stat().st_mtime_ns for path in run.folder.glob("[!.]*")} == before
    assert again.resumed_at == 4 * 5
    pd.testing.assert_frame_equal(again.history, run.history)
    assert progress_of(run.folder) == (4, True)
    assert progress_of(run.folder.parent) is None


def test_files_that_were_deleted_are_written_again(undisturbed, caches, tmp_path):
    _, run = undisturbed
    shutil.copytree(run.folder.parent, tmp_path / "copy")
    folder = tmp_path / "copy" / run.folder.name
    (folder / "best.safetensors").unlink()
    (folder / "last.safetensors").unlink()
    _, again = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path / "copy")
    assert same_weights(again.best, run.best)
    assert same_weights(again.last, run.last)
    again.kept(2).unlink()
    with pytest.raises(CheckpointError, match=r"epoch-002\.safetensors is gone"):
        train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path / "copy")


# a real process, killed by itself at a given optimiser step, or in the middle of writing a given checkpoint file
KILLED = """
import os, signal, sys
import torch
from surgerylib import files
from surgerylib.clip import load_clip
from surgerylib.datasets import load_dataset
from surgerylib.engine.features import FeatureCache
from surgerylib.engine.localizer_training import LocalizerSettings, train_localizer
from surgerylib.engine.training import Schedule
model, scenes, cached, out, place, number = sys.argv[1:]
clip = load_clip(f"local-dir:{model}", model + "/model.safetensors", device="cpu", depth=3)
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
settings, schedule = LocalizerSettings(grid_size=4, batch_size=3), Schedule(epochs=4, warmup_epochs=0.5)
train_localizer(*caches, settings, schedule, out, checkpoint_seconds=0)
"""
STEPS = sorted(random.Random(20).sample(range(2, 20), 3))


@pytest.mark.parametrize(
    ("place", "number"), [*(("step", step) for step in STEPS), ("resume.pt", 7), ("best.safetensors", 9)]
)
def test_killed_and_gone_on_with_it_ends_with_the_same_weights(
    undisturbed, caches, tiny_folder, root, tmp_path, place, number
):
    _, run = undisturbed
    cached = caches[0].folder.parent
    arguments = [tiny_folder, root, cached, tmp_path, place, number]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], cwd=Path(__file__).parents[1], capture_output=True,
        check=False,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not (progress_of(folder) or (0, False))[1]
    task, again = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path)
    assert again.folder == folder
    assert again.resumed_at is not None
    if place == "step":
        assert again.resumed_at == number - 1  # a checkpoint after every step: only the killed one was lost
    for name in ("last", "best"):
        assert same_weights(getattr(again, name), getattr(run, name)), name
    for epoch in (0, 2, 4):
        assert same_weights(again.kept(epoch), run.kept(epoch)), epoch
    pd.testing.assert_frame_equal(again.history, run.history, check_exact=True)
    assert task.ever_positive.all()


def test_a_flipped_and_turned_scene_gives_the_same_box(caches):
    """A head that answers with the CAM's brightest cell finds the turned box in the turned scene."""
    reader = BatchReader(caches[0])
    position = int(reader.usable[0])
    n_rows, n_columns = caches[0].clip.grid
    (record,) = caches[0].read([position])
    peak = int(record["cam"][3].argmax())
    row, column = divmod(peak, n_columns)
    cell = np.array([[column / n_columns, row / n_rows, (column + 1) / n_columns, (row + 1) / n_rows]])
    for symmetry in range(8):
        cam = reader.batch([position], [symmetry]).cam[0, 3]
        row, column = divmod(int(cam.argmax()), n_columns)
        found = np.array([[column / n_columns, row / n_rows, (column + 1) / n_columns, (row + 1) / n_rows]])
        np.testing.assert_allclose(found, turn_boxes(cell, symmetry), atol=1e-12)


def test_without_augmentation_the_images_are_as_they_are(caches):
    task = LocalizerTask(*caches, LocalizerSettings(grid_size=4, batch_size=3, augment=False))
    for batch in task.batches(1, 0):
        plain = task.reader.batch(batch.positions)
        assert torch.equal(batch.pictures, plain.pictures)


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


def test_early_stop(caches, tmp_path, monkeypatch):
    values = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
    monkeypatch.setattr(LocalizerTask, "validate", lambda self: {"val_iou": next(values)})
    task, run = train_localizer(*caches, SETTINGS, Schedule(epochs=20, patience=2), tmp_path)
    assert run.stopped_early
    assert run.history["epoch"].tolist() == [0, 1, 2, 3]
    assert run.best_epoch == 1
    _, again = train_localizer(*caches, SETTINGS, Schedule(epochs=20, patience=2), tmp_path)
    assert again.stopped_early
    assert again.resumed_at == 3 * task.steps


def test_a_box_that_never_has_a_positive_is_known(caches, tmp_path):
    settings = LocalizerSettings(grid_size=4, batch_size=3, assign="best_iou", positive_iou=0.9)
    task, run = train_localizer(*caches, settings, Schedule(epochs=2), tmp_path)
    share = run.history["share_without_positive"].iloc[1:]
    assert share.min() > 0
    assert 1 - float(task.ever_positive.float().mean()) <= share.min() + 1e-9
    again = LocalizerTask(*caches, settings)
    fit(again, Schedule(epochs=2), run.folder, keep_epochs=kept_epochs(Schedule(epochs=2)))
    assert torch.equal(again.ever_positive, task.ever_positive)


def test_other_settings_are_other_trainings(caches, tmp_path):
    variants = (
        SETTINGS,
        replace(SETTINGS, inputs=("cam",)),
        replace(SETTINGS, seed=1),
        replace(SETTINGS, augment=False),
    )
    folders = {training_folder(LocalizerTask(*caches, settings), SCHEDULE, tmp_path) for settings in variants}
    assert len(folders) == 4
    assert training_folder(LocalizerTask(*caches, SETTINGS), Schedule(epochs=5), tmp_path) not in folders
    same = replace(SETTINGS, l1_weight=1), Schedule(epochs=4, warmup_epochs=0.5, weight_decay=1e-2, gradient_clip=1)
    assert training_folder(LocalizerTask(*caches, same[0]), same[1], tmp_path) in folders  # 1 is 1.0
    swapped = training_folder(LocalizerTask(*caches[::-1], SETTINGS), SCHEDULE, tmp_path)
    assert swapped not in folders


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


def test_every_box_has_its_row_with_head_and_baselines(undisturbed, caches):
    _, run = undisturbed
    model, about = load_localizer(run.best)
    frame = localize(model, BatchReader(caches[1]), np.array(about["class_means"]))
    truth = caches[1].dataset.boxes
    assert len(frame) == len(truth)
    ordered = frame.sort_values("box_row")
    assert ordered["label"].tolist() == truth["label"].tolist()
    assert ordered["image_id"].tolist() == truth["image_id"].tolist()
    assert (frame["oracle"] >= frame["cam_peak"]).all()
    summary = summarise(frame).set_index(["method", "figure"])
    assert list(dict.fromkeys(summary.reset_index()["method"])) == [
        "oracle", "cam_peak", "whole_image", "centre_box", "class_mean",
    ]  # fmt: skip
    assert summary.loc[("oracle", "mean"), "value"] == pytest.approx(run.history["val_iou"].max())


# ---------------------------------------------------------------------------------------------------- bad input


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_weights(caches, tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "n_streams", lambda device: 1)  # a step is a call
    good = LocalizerTask(*caches, SETTINGS)
    folder = training_folder(good, SCHEDULE, tmp_path)
    task = LocalizerTask(*caches, SETTINGS)
    loss, calls = task.loss, []

    def poisoned(batch):
        calls.append(batch)
        total, figures = loss(batch)
        return (total * math.nan if len(calls) == 8 else total), figures

    task.loss = poisoned
    with pytest.raises(TrainingError, match=r"epoch 2, batch 3 of 5 \(images ") as raised:
        fit(task, SCHEDULE, folder, keep_epochs=(0, 2, 4))
    assert "\n" not in str(raised.value)
    assert all(value.isfinite().all() for value in task.model.state_dict().values())
    model, _ = load_localizer(folder / "best.safetensors")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert progress_of(folder) == (1, False)
    # the weights before the bad step are those a rerun goes on from
    kept = torch.load(folder / "resume.pt", weights_only=True)["model"]
    assert all(torch.equal(kept[name], value) for name, value in task.model.state_dict().items())


def test_a_gradient_that_is_not_a_number_stops_too(caches, tmp_path):
    task = LocalizerTask(*caches, SETTINGS)
    loss = task.loss

    def poisoned(batch):
        total, figures = loss(batch)
        total.register_hook(lambda gradient: gradient * math.inf)
        return total, figures

    task.loss = poisoned
    with pytest.raises(TrainingError, match="epoch 1, batch 1"):
        fit(task, SCHEDULE, tmp_path / "x")
    assert (tmp_path / "x" / "best.safetensors").is_file()


def test_a_split_without_boxes(tiny, root, caches, tmp_path):
    empty = []
    for split in ("train", "val"):
        data = load_dataset(root, split)
        empty.append(cache_of(tiny, replace(data, boxes=data.boxes.iloc[:0]), tmp_path))
    with pytest.raises(TrainingError, match="no box to learn from"):
        fit(LocalizerTask(empty[0], caches[1], SETTINGS), SCHEDULE, tmp_path / "x")
    with pytest.raises(TrainingError, match="val has no box"):
        LocalizerTask(caches[0], empty[1], SETTINGS)


def test_features_of_different_things_are_not_trained_on_together(caches, tiny, tiny_folder, root, tmp_path):
    data = load_dataset(root, "val")
    others = {"kind": FeatureCache(tiny, data, tmp_path, kind="standard", picture_size=PICTURE)}
    folder = write_model(tmp_path / "other", seed=8)
    clip = load_clip(f"local-dir:{folder}", str(folder / "model.safetensors"), device="cpu", depth=3)
    others["weights_sha256"] = FeatureCache(clip, data, tmp_path, picture_size=PICTURE)
    for what, other in others.items():
        with pytest.raises(CacheError, match=what):
            LocalizerTask(caches[0], other.compute(), SETTINGS)
    with pytest.raises(ParameterError, match="share 14 images"):
        LocalizerTask(caches[0], caches[0], SETTINGS)


def test_seen_classes(caches, tmp_path):
    data = caches[0].dataset
    counts = data.boxes["label"].value_counts()
    shared = [name for name in counts.index if (caches[1].dataset.boxes["label"] == name).any()]
    without = [name for name in data.classes if name not in counts.index]
    settings = LocalizerSettings(grid_size=4, batch_size=3, seen_classes=(shared[0].upper(),))  # any spelling
    task, run = train_localizer(*caches, settings, Schedule(epochs=2), tmp_path)
    assert set(task.reader.usable) == set(np.flatnonzero(data.images["image_id"].isin(
        data.boxes.loc[data.boxes["label"] == shared[0], "image_id"])))  # fmt: skip
    assert not task.ever_positive.numpy()[(data.boxes["label"] != shared[0]).to_numpy()].any()
    _, about = load_localizer(run.last)
    assert about["seen_classes"] == [shared[0]]
    assert without
    with pytest.raises(ParameterError, match=f"{without[0]}, without a box in the split train"):
        LocalizerTask(*caches, LocalizerSettings(seen_classes=(shared[0], without[0])))
    with pytest.raises(ParameterError, match="list of class names, or null"):
        LocalizerTask(*caches, LocalizerSettings(seen_classes=()))
    with pytest.raises(UnknownClassError, match="nearest known"):
        LocalizerTask(*caches, LocalizerSettings(seen_classes=("zeppelin",)))


def test_a_training_of_something_else_is_refused(undisturbed, caches, tiny_folder, root, tmp_path):
    _, run = undisturbed
    shutil.copytree(run.folder, tmp_path / "x")
    other = LocalizerTask(*caches, LocalizerSettings(grid_size=4, batch_size=3, assign="best_iou"))
    with pytest.raises(CheckpointError, match=r"something else .*best_iou"):
        fit(other, SCHEDULE, tmp_path / "x", keep_epochs=(0, 2, 4))
    folder = write_model(tmp_path / "other", seed=8)
    clip = load_clip(f"local-dir:{folder}", str(folder / "model.safetensors"), device="cpu", depth=3)
    strange = [cache_of(clip, load_dataset(root, split), tmp_path / "caches") for split in ("train", "val")]
    with pytest.raises(CheckpointError, match="train_cache"):
        fit(LocalizerTask(*strange, SETTINGS), SCHEDULE, tmp_path / "x", keep_epochs=(0, 2, 4))
    with pytest.raises(CheckpointError, match="weights_sha256"):
        load_localizer(run.best, belongs_to=belongs_to(strange[0]))


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_checkpoint_is_named(undisturbed, caches, tmp_path, content):
    _, run = undisturbed
    shutil.copytree(run.folder, tmp_path / "x")
    path = tmp_path / "x" / "resume.pt"
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(CheckpointError, match=r"resume\.pt cannot be read") as raised:
        fit(LocalizerTask(*caches, SETTINGS), SCHEDULE, tmp_path / "x")
    assert "\n" not in str(raised.value)


def test_hostile_checkpoint_is_not_run(caches, tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "resume.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(CheckpointError, match="cannot be read"):
        fit(LocalizerTask(*caches, SETTINGS), SCHEDULE, tmp_path / "x")
    assert not (tmp_path / "owned").exists()


def test_two_processes_do_not_train_in_one_folder(caches, tmp_path):
    with only_process(tmp_path / "x", "trains"), pytest.raises(OutputError, match=r"another process \(\d+\) trains"):
        fit(LocalizerTask(*caches, SETTINGS), SCHEDULE, tmp_path / "x")


def test_a_full_disk_keeps_the_checkpoint_before(caches, tmp_path, monkeypatch):
    write, written = training_module.atomic_write, []

    def full(path, content):
        written.append(path)
        if len(written) > 6:
            raise OutputError(f"{path} cannot be written: No space left on device; free the disk")
        return write(path, content)

    monkeypatch.setattr(training_module, "atomic_write", full)
    task = LocalizerTask(*caches, SETTINGS)
    with pytest.raises(OutputError, match="No space left"):
        fit(task, SCHEDULE, tmp_path / "x", checkpoint_seconds=0)
    monkeypatch.undo()
    run = fit(LocalizerTask(*caches, SETTINGS), SCHEDULE, tmp_path / "x")
    assert run.resumed_at == 3


class _Line:
    """A task with one weight: the loop on its own."""

    criterion = "val"
    steps = 2

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.identity = {"trained": "line"}

    def batches(self, epoch: int, first: int) -> Iterator[torch.Tensor]:
        yield from torch.full((self.steps, 4, 1), float(epoch))[first:]

    def loss(self, batch):
        total = (self.model(batch) - 3 * batch).square().mean()
        return total, {"loss": (float(total.detach()), 1), "nothing": (0.0, 0)}

    def parts(self, batch, most):
        return [batch]

    def validate(self) -> dict[str, float]:
        return {"val": -abs(float(self.model.weight.detach()) - 3)}

    def describe(self, batch) -> str:
        return "a line"

    def state(self):
        return {}

    def restore(self, state) -> None:
        assert state == {}

    def save(self, path, weights, about) -> None:
        path.write_bytes(safetensors.torch.save(dict(weights)))


def test_any_task_can_be_trained(tmp_path):
    task = _Line()
    run = fit(task, Schedule(epochs=60, learning_rate=0.3), tmp_path / "line")
    assert float(task.model.weight.detach()) == pytest.approx(3, abs=0.05)
    assert run.history["nothing"].isna().all()
    assert float(weights_of(run.best)["weight"]) == pytest.approx(3, abs=0.05)


def test_bug_a_quick_training_that_was_interrupted_left_its_bar_without_an_end_of_line(tmp_path, capsys):
    """What the command line then said stood behind the bar."""
    task = _Line()
    validate, calls = task.validate, []

    def stopped() -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return validate()

    task.validate = stopped
    with pytest.raises(KeyboardInterrupt):
        fit(task, Schedule(epochs=60), tmp_path / "line")
    said = capsys.readouterr().err
    assert not said or said.endswith("\n")


def test_a_training_that_fails_stops_those_beside_it(tmp_path):
    good, bad = _Line(), _Line()
    loss, calls = bad.loss, []

    def broken(batch):
        calls.append(1)
        total, figures = loss(batch)
        return (total * math.nan if len(calls) == 3 else total), figures

    bad.loss = broken
    long = Schedule(epochs=100_000, warmup_epochs=0.0)
    n_threads = torch.get_num_threads()
    jobs = [Job(good, long, tmp_path / "good"), Job(bad, SCHEDULE, tmp_path / "bad")]
    with pytest.raises(TrainingError, match="loss is nan"):
        fit_side_by_side(jobs)
    assert torch.get_num_threads() == n_threads
    assert not progress_of(tmp_path / "bad")[1]


def test_a_batch_in_parts_is_the_batch(caches):
    task = LocalizerTask(*caches, LocalizerSettings(batch_size=4))
    batch = next(task.batches(1, 0))
    for most in (1, 2, 3, 9):
        parts = batch.parts(most)
        assert len(parts) == min(most, len(batch.positions))
        for name in ("positions", "rows", "pictures", "cam", "features"):
            whole = np.asarray(getattr(batch, name))
            assert np.array_equal(np.concatenate([np.asarray(getattr(part, name)) for part in parts]), whole)
        assert [len(box) for part in parts for box in part.boxes] == [len(box) for box in batch.boxes]
        assert all(len(part.rows) == sum(map(len, part.labels)) for part in parts)


def test_a_step_on_parts_of_a_batch_is_the_step_on_all_of_it(caches):
    """The loss is a mean over positives, of which the parts have different numbers: they weigh as many."""
    steps = {}
    for count in (1, 3):
        task = LocalizerTask(*caches, LocalizerSettings(batch_size=5))
        optimizer = torch.optim.SGD(task.model.parameters(), lr=1.0)
        with Streams(count) as streams:
            batch = next(task.batches(1, 0))
            figures = train_step(task, optimizer, batch, clip=math.inf, streams=streams)
        steps[count] = figures, torch.cat([p.detach().flatten() for p in task.model.parameters()])
        assert count == 1 or len({task.loss(part)[1]["loss"][1] for part in batch.parts(3)}) > 1
    for name, figure in steps[1][0].items():
        assert steps[3][0][name] == pytest.approx(figure, rel=1e-5), name
    torch.testing.assert_close(steps[3][1], steps[1][1], rtol=1e-4, atol=1e-6)


def test_a_part_without_a_number_stops_the_step(caches):
    task = LocalizerTask(*caches, LocalizerSettings(batch_size=5))
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    loss, bad = task.loss, set()

    def poisoned(part):
        total, figures = loss(part)
        return (total * math.nan if set(part.positions) & bad else total), figures

    task.loss = poisoned
    batch = next(task.batches(1, 0))
    bad.add(batch.positions[0])
    with Streams(2) as streams, pytest.raises(FloatingPointError, match="loss is nan"):
        train_step(task, optimizer_of(task.model, SCHEDULE), batch, clip=1.0, streams=streams)
    assert all(torch.equal(now, old) for now, old in zip(task.model.parameters(), before, strict=True))
