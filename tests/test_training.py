"""The loop itself on a task of one weight: resume, kills, bad input; and what is particular to the localiser."""

from __future__ import annotations

import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from disturbed import killed_at, stop
from refusals import each_refused, refused
from safetensors.torch import load_file
from tiny_models import Touch, load_tiny, one_thread, write_model

from surgerylib.datasets import load_dataset
from surgerylib.engine.adapter_training import AdapterSettings
from surgerylib.engine.features import BatchReader, FeatureCache
from surgerylib.engine.localizer_training import (
    LocalizerSettings,
    LocalizerTask,
    localize,
    predict,
    train_localizer,
)
from surgerylib.engine.tasks import Schedule, Task
from surgerylib.engine.training import TRAINING_VERSION, Training, fit, folder_of, progress_of
from surgerylib.errors import CacheError, CheckpointError, OutputError, ParameterError, TrainingError
from surgerylib.files import atomic_write, only_process
from surgerylib.localizer import load_localizer
from surgerylib.losses import gt_class_localization_loss

PICTURE = 32
SETTINGS = LocalizerSettings(grid_size=4, training_batch_size=3)
SCHEDULE = Schedule(epochs=3, warmup_epochs=0.5)


class Line(Task):
    """A task with one weight: the loop on its own."""

    name, criterion, places = "line", "val", np.arange(16)
    settings = SimpleNamespace(training_batch_size=4, seed=0)

    def __init__(self, loss: str | None = "square") -> None:
        self.kept = {}
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.identity = {"trained": "line", "loss": loss}
        self.calls = 0

    def batch(self, places: np.ndarray, symmetries: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(places / 10 + 0.5).float()[:, None]

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
        atomic_write(path, safetensors.torch.save(dict(weights)))


def same_weights(a: Path, b: Path) -> bool:
    mine, theirs = load_file(a), load_file(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def assert_same(run: Training, other: Training) -> None:
    """Bit for bit, and every epoch of their histories."""
    for path in other.folder.glob("*.safetensors"):
        assert same_weights(run.folder / path.name, path), path.name
    pd.testing.assert_frame_equal(run.history, other.history, check_exact=True)


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
    assert Schedule(epochs=40, warmup_epochs=2.0, patience=3).short(10) == Schedule(epochs=10, warmup_epochs=0.5)


@pytest.mark.parametrize(
    ("of", "wrongs"),
    [
        (Schedule, ({"epochs": 2.0}, {"learning_rate": math.nan}, {"min_learning_rate": 1.0}, {"warmup_epochs": 40})),
        (LocalizerSettings, ({"l1_weight": 0, "giou_weight": 0}, {"positive_iou": 1.0}, {"inputs": ()},
                             {"inputs": ("text",)}, {"assign": "nearest"}, {"seen_classes": "ship"})),
        (AdapterSettings, ({"rank": 0}, {"positive_weight": 0}, {"positive_weight": math.inf}, {"seed": None})),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(of, wrongs):
    for wrong in wrongs:
        refused(lambda wrong=wrong: of(**wrong), ParameterError, next(iter(wrong)))


# --------------------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Training:
    """The line, trained without a disturbance; for reading only."""
    return fit(Line(), SCHEDULE, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("at", "number", "step"),
    [("loss", 1, 0), ("loss", 7, 6), ("validate", 1, None), ("validate", 3, 4),
     ("step", 7, 4)],  # the optimiser's: the weights have moved, the position has not
)  # fmt: skip
def test_ctrl_c_keeps_the_work_and_the_run_ends_with_the_same_weights(
    whole, tmp_path, monkeypatch, capsys, at, number, step
):
    stop(monkeypatch, torch.optim.AdamW if at == "step" else Line, at, number)
    with pytest.raises(KeyboardInterrupt):
        fit(Line(), SCHEDULE, tmp_path)
    monkeypatch.undo()
    bar = capsys.readouterr().err
    assert not bar or bar.endswith("\n")  # what the command line then said stood behind the bar
    task = Line()
    run = fit(task, SCHEDULE, tmp_path)
    assert run.resumed_at == step
    assert task.calls == 12 - (step or 0)
    assert_same(run, whole)
    said = capsys.readouterr().out
    assert ("taken up behind epoch" in said and "loss square" in said) == (step is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "epoch"),  # in the third checkpoint, and in the best weights
    [("torch.optim:AdamW.step", 7, 1), ("torch.optim:AdamW.step", 11, 2), ("os:fsync", 3, 1), ("os:fsync", 6, 3)],
)
def test_killed_and_gone_on_with_it_ends_with_the_same_weights(whole, tmp_path, place, number, epoch):
    killed_at(place, number, fit, Line(), SCHEDULE, tmp_path)
    assert progress_of(tmp_path / whole.folder.name) == (epoch, False)
    run = fit(Line(), SCHEDULE, tmp_path)
    assert run.resumed_at == epoch * 4  # no more than the epoch was lost
    assert_same(run, whole)


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
    refused(lambda: fit(Line(), SCHEDULE, tmp_path, keep_epochs=(0, 3)), CheckpointError, r"epoch-000\.saf.* is gone")


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
    assert load_file(folder / "best.safetensors")["weight"].isfinite()
    kept = torch.load(folder / "resume.pt", weights_only=True)["model"]["weight"]  # what a rerun goes on from
    assert float(kept) == task.weight


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    stop(monkeypatch, os, "fsync", 3, OSError(28, "No space left on device"))
    refused(lambda: fit(Line(), SCHEDULE, tmp_path), OutputError, "No space left")
    monkeypatch.undo()
    assert fit(Line(), SCHEDULE, tmp_path).resumed_at == 4  # one epoch


def test_a_loss_that_cannot_be_told_apart_is_trained_and_not_kept(tmp_path):
    runs = [fit(Line(loss=None), SCHEDULE, tmp_path) for _ in range(2)]
    assert runs[1].resumed_at is None
    assert not list(tmp_path.iterdir())
    assert same_weights(runs[0].last, runs[1].last)  # as long as the training is at hand
    folder = runs.pop().folder
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = fit(Line(), SCHEDULE, tmp_path).folder / "resume.pt"
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    refused(lambda: fit(Line(), SCHEDULE, tmp_path), CheckpointError, r"resume\.pt cannot be read")


def test_hostile_checkpoint_is_not_run(tmp_path):
    path = folder_of(Line(), SCHEDULE, tmp_path) / "resume.pt"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Touch(tmp_path / "owned"), protocol=2))
    refused(lambda: fit(Line(), SCHEDULE, tmp_path), CheckpointError, "cannot be read")
    assert not (tmp_path / "owned").exists()


def test_a_folder_of_another_training_or_of_another_process_is_left_alone(whole, tmp_path):
    other = folder_of(Line("another"), SCHEDULE, tmp_path)
    with only_process(other, "trains"):
        refused(lambda: fit(Line("another"), SCHEDULE, tmp_path), OutputError, r"another process \(\d+\) trains")
    shutil.copytree(whole.folder, other, dirs_exist_ok=True)
    match = r"something else \(loss: \"square\" there, \"another\" here"
    refused(lambda: fit(Line("another"), SCHEDULE, tmp_path), CheckpointError, match)


# ------------------------------------------------------------------------------------------------- the localiser


@pytest.fixture(scope="module")
def caches(tiny, training_root, tmp_path_factory) -> tuple[FeatureCache, FeatureCache]:
    folder, parts = tmp_path_factory.mktemp("caches"), {"train": 10, "val": 4}
    data = [load_dataset(training_root, split, limit=limit) for split, limit in parts.items()]
    return tuple(FeatureCache(tiny, of, folder, picture_size=PICTURE).compute() for of in data)


@pytest.fixture(scope="module")
def undisturbed(caches, tmp_path_factory):
    return train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path_factory.mktemp("undisturbed"))


def test_the_history_says_what_happened(undisturbed):
    task, run = undisturbed
    history = run.history
    assert history[["epoch", "step"]].to_numpy().tolist() == [[epoch, epoch * task.steps] for epoch in range(4)]
    figures = ["loss", "l1", "giou", "positives_per_box", "share_without_positive", "val_iou", "val_share_50"]
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


def test_stopped_and_gone_on_with_it_ends_with_the_same_file_and_another_seed_does_not(
    undisturbed, caches, tmp_path, monkeypatch
):
    _, run = undisturbed
    state = torch.get_rng_state()
    stop(monkeypatch, LocalizerTask, "loss", 7)
    with pytest.raises(KeyboardInterrupt):
        train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path)
    monkeypatch.undo()
    task, again = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    assert again.resumed_at == 6
    assert_same(again, run)
    assert run.last.read_bytes() == again.last.read_bytes()
    assert task.ever_positive.all()
    other = LocalizerTask(*caches, replace(SETTINGS, seed=1))
    assert not torch.equal(other.model.state_dict()["boxes.weight"], load_file(run.kept(0))["boxes.weight"])
    assert not np.array_equal(*(next(of.batches(1, 0)).positions for of in (task, other)))


GOLDEN = [0.2339902172819856, 0.005250427876391527, 0.23088071051259418, 0.011019662620181468, 2.576055152298974]


def test_other_numbers_need_another_version(caches, tmp_path):
    """Whoever changes what a training gives counts `TRAINING_VERSION` up, and writes the new figures here."""
    with one_thread():
        _, run = train_localizer(*caches, SETTINGS, Schedule(epochs=1, warmup_epochs=0.5), tmp_path)
    found = [*run.history[["val_iou", "val_peak_iou"]].to_numpy().flatten().tolist(), run.history["loss"].iloc[1]]
    assert (TRAINING_VERSION, found) == (1, pytest.approx(GOLDEN, abs=1e-6))


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
    def folder(schedule=SCHEDULE, both=caches, **change):
        return folder_of(LocalizerTask(*both, replace(SETTINGS, **change)), schedule, tmp_path)

    others = [
        folder(inputs=("cam",)), folder(augment=False), folder(replace(SCHEDULE, epochs=5)), folder(both=caches[::-1])
    ]  # fmt: skip
    assert len({folder(), *others}) == 5
    assert folder(replace(SCHEDULE, gradient_clip=1), l1_weight=1) == folder()  # 1 is 1.0


def test_channels_without_a_box_are_left_out_of_training_alone(caches):
    task = LocalizerTask(*caches, SETTINGS)
    batch = next(task.batches(1, 0))
    part, whole = predict(task.model, batch), task.model(batch.pictures, batch.cam, batch.features)
    for image, labels in enumerate(batch.labels):
        asked = labels.unique()
        torch.testing.assert_close(part[image, asked], whole[image, asked], rtol=1e-5, atol=1e-6)
        others = [k for k in range(len(part[image])) if k not in asked]
        assert not part[image, others].any()


def test_the_grid_is_that_of_the_patches_unless_it_is_given_and_images_stay_as_they_are_unless_augmented(caches):
    assert LocalizerTask(*caches, LocalizerSettings(grid_size=7)).model.grid == (7, 7)
    task = LocalizerTask(*caches, LocalizerSettings(augment=False))
    assert task.model.grid == caches[0].clip.grid
    for batch in task.batches(1, 0):
        assert torch.equal(batch.pictures, task.reader.batch(batch.positions).pictures)


def test_a_loss_of_ones_own_is_trained_in_a_folder_of_its_own(undisturbed, caches, tmp_path):
    """Here the package's own, given by hand: it gives the same weights."""

    def by_hand(*predicted):
        return gt_class_localization_loss(*predicted, assign="best_iou_or_center")

    unknown = object()  # has no key
    _, run = train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path, loss=by_hand)
    assert run.folder.name != undisturbed[1].folder.name
    assert same_weights(run.last, undisturbed[1].last)
    assert run.history["loss"].iloc[1:].notna().all()
    assert run.history["l1"].isna().all()
    assert LocalizerTask(*caches, SETTINGS, loss=lambda *boxes: unknown).identity["loss"] is None


def test_only_boxes_of_seen_classes_are_trained_on(caches, tmp_path):
    data = caches[0].dataset
    counts = data.boxes["label"].value_counts()
    shared = next(name for name in counts.index if (caches[1].dataset.boxes["label"] == name).any())
    settings = replace(SETTINGS, seen_classes=(shared.upper(),))  # any spelling
    task, run = train_localizer(*caches, settings, Schedule(epochs=2), tmp_path)
    with_box = data.images["image_id"].isin(data.boxes.loc[data.boxes["label"] == shared, "image_id"])
    assert set(task.reader.usable) == set(np.flatnonzero(with_box))
    assert not task.ever_positive.numpy()[(data.boxes["label"] != shared).to_numpy()].any()
    assert load_localizer(run.last)[1]["seen_classes"] == [shared]


def test_what_cannot_be_trained(tiny, caches, tmp_path, undisturbed):
    train, val = caches
    none = [
        FeatureCache(tiny, replace(cache.dataset, boxes=cache.dataset.boxes.iloc[:0]), tmp_path, picture_size=PICTURE)
        for cache in caches
    ]
    other = FeatureCache(load_tiny(write_model(tmp_path / "other", seed=8)), val.dataset, tmp_path)
    best, trained = undisturbed[1].best, LocalizerTask(none[0].compute(), val, SETTINGS)

    def with_loss(loss) -> None:
        train_localizer(*caches, SETTINGS, SCHEDULE, tmp_path, loss=loss)

    each_refused(
        (lambda: fit(trained, SCHEDULE, tmp_path / "x"), TrainingError, "no box to learn from"),
        (lambda: LocalizerTask(train, none[1].compute(), SETTINGS), TrainingError, "val has no box"),
        (lambda: LocalizerTask(train, other, SETTINGS), CacheError, "weights_sha256"),
        (lambda: load_localizer(best, belongs_to=other.belongs_to), CheckpointError, "weights_sha256"),
        (lambda: LocalizerTask(train, train, SETTINGS), ParameterError, "share 10 images"),
        (lambda: with_loss(lambda p, b, c: 3.0), TrainingError, "it gave 'float'"),
        (lambda: with_loss(lambda p, b, c: p.mean().detach()), TrainingError, "without a gradient"),
        (lambda: with_loss(lambda p, b, c: p), TrainingError, "the loss must give a tensor of one number"),
    )
