"""The token cache, and what is particular to adapters that are trained on it; the loop is `test_training`'s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import each_refused
from scipy.stats import spearmanr
from test_training import same_weights
from tiny_models import one_thread, shards_of
from torchmetrics.functional.classification import binary_average_precision

from surgerylib.adapter import HeatmapAdapter, clip_and_tokens, load_adapter
from surgerylib.boxes import patch_coverage
from surgerylib.clip import ImageTokens
from surgerylib.datasets import Dataset, load_dataset, read_image
from surgerylib.engine.adapter_training import (
    AdapterSettings,
    AdapterTask,
    CoverageTargets,
    TokenCache,
    logits_in_order,
    patch_average_precision,
    train_adapter,
)
from surgerylib.engine.tasks import Schedule
from surgerylib.engine.training import TRAINING_VERSION
from surgerylib.errors import CacheError, ParameterError, TrainingError
from surgerylib.heatmaps import HEATMAP_KINDS, heatmaps
from surgerylib.words import prompt_names

N_TRAIN, N_VAL = 12, 5
SETTINGS = AdapterSettings(rank=4, training_batch_size=3)
SCHEDULE = Schedule(epochs=2, learning_rate=1e-2, warmup_epochs=0.5)
SHORT = Schedule(epochs=1, learning_rate=1e-2, warmup_epochs=0)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with shards_of(4):
        yield


@pytest.fixture(scope="module")
def caches(tiny, training_root, tmp_path_factory, small_shards) -> tuple[TokenCache, TokenCache]:
    """For reading only."""
    folder = tmp_path_factory.mktemp("kept")
    return tuple(TokenCache(tiny, load_dataset(training_root, split), folder).compute() for split in ("train", "val"))


@pytest.fixture(scope="module")
def undisturbed(caches, tmp_path_factory):
    return train_adapter(*caches, SETTINGS, SCHEDULE, tmp_path_factory.mktemp("undisturbed"))


def with_dataset(cache: TokenCache, dataset: Dataset) -> TokenCache:
    """The same tokens, with other boxes or another class list."""
    return TokenCache(cache.clip, dataset, cache.folder.parent, layers=cache.recipe.layers)


def without_boxes(cache: TokenCache, *names: str) -> TokenCache:
    boxes = cache.dataset.boxes
    return with_dataset(cache, replace(cache.dataset, boxes=boxes[~boxes["label"].isin(names)].reset_index(drop=True)))


# ----------------------------------------------------------------------------------------------- the token cache


def test_the_tokens_are_those_of_the_model_but_for_16_bits(caches, tiny):
    """16 bits round a number by at most 2^-11 of it, and its similarity to a unit text by less than 0.001."""
    cache, data = caches[1], caches[1].dataset
    live = [tiny.encode_image(tiny.preprocess(read_image(path))[None], 3) for path in data.images["path"]]
    text = tiny.encode_text(prompt_names(data.classes))
    assert cache.record == np.dtype((np.float16, (2, 3, 16, 24)))
    for path in ("qk", "vv"):
        stored = cache.tokens(range(N_VAL), path)
        patches = torch.cat([getattr(tokens, path)[:, :, 1:] for tokens in live], dim=1)  # without CLS
        assert stored.dtype == torch.float32
        torch.testing.assert_close(stored, patches, rtol=2**-11, atol=2e-6)
        assert ((stored - patches) @ text.T).abs().max() < 1e-3
        assert torch.equal(cache.tokens([3, 0, 2], path), stored[:, [3, 0, 2]])  # over the border of shards, any order
        assert cache.tokens([], path).shape == (3, 0, 16, 24)


def test_the_class_list_is_no_part_of_it(tiny, caches, tmp_path, monkeypatch):
    """The same tokens serve any classes: nothing is computed again, and the text is never asked for."""
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(tiny, name, lambda *_, name=name: pytest.fail(f"{name} was used"))
    cache, data = caches[0], caches[0].dataset
    for other in (replace(data, classes=data.classes[::-1]), replace(data, classes=("ship",), boxes=data.boxes[:0])):
        assert TokenCache(tiny, other, cache.folder.parent).compute().folder == cache.folder
    assert TokenCache(tiny, data, tmp_path, layers=2).key != cache.key
    assert TokenCache(tiny, data.sample(5), tmp_path).key != cache.key


# ------------------------------------------------------------------------------------------------------- training


def test_the_history_says_what_happened(undisturbed):
    task, run = undisturbed
    history, names = run.history, ["classification", "localization", "sparsity"]
    assert history[["loss", *names, "bce", "dice", "drift", "scale"]].iloc[1:].notna().all(axis=None)
    assert (np.diff(history["loss"].iloc[1:]) < 0).all()  # it learns
    assert run.best_epoch == history["val_patch_ap"].idxmax()
    total = history[names].sum(axis=1) + 3 * history["drift"]
    np.testing.assert_allclose(history["loss"].iloc[1:], total.iloc[1:], rtol=1e-5)
    assert float(task.model.scale.detach()) != 1  # it is trained too


@pytest.mark.parametrize("kind", ["vv_mixed", "standard"])
def test_the_validation_before_training_is_that_of_the_frozen_maps(caches, kind):
    """Asked of the notebooks' own functions: heatmaps of the stored tokens, and boxes one class and image at a time."""
    task = AdapterTask(*caches, SETTINGS, kind=kind)
    cache, data = caches[1], caches[1].dataset
    blank = torch.zeros(3, N_VAL, 1, 24)
    both = (torch.cat([blank, cache.tokens(range(N_VAL), path)], dim=2) for path in ("qk", "vv"))
    text = cache.clip.encode_text(prompt_names(task.seen))
    maps = heatmaps(ImageTokens(*both, blank, cache.clip.grid), text, kind)
    stored = torch.cat(list(logits_in_order(HeatmapAdapter(24, 3).requires_grad_(False), cache, kind, text)))
    torch.testing.assert_close(stored, maps, rtol=0, atol=1e-6)  # the layers' mean is taken in another order
    coverage = torch.zeros(maps.shape)
    for (image_id, name), rows in data.boxes[data.boxes["label"].isin(task.seen)].groupby(["image_id", "label"]):
        boxes = rows[["xmin", "ymin", "xmax", "ymax"]].to_numpy() / 96
        covered = torch.from_numpy(patch_coverage(boxes, cache.clip.grid))
        coverage[data.images["image_id"].tolist().index(image_id), task.seen.index(name)] = covered
    targets = CoverageTargets(data, task.seen, cache.clip.grid)
    torch.testing.assert_close(targets.read(range(N_VAL)), coverage, rtol=0, atol=1e-7)
    assert len(targets) == (coverage > 0).any(dim=3).any(dim=2).sum()
    expected = np.nanmean(patch_average_precision(maps, coverage))
    assert task.validate() == {"val_patch_ap": pytest.approx(expected, abs=1e-9)}


def test_an_epoch_shows_each_image_once(caches):
    """Those without a box too: they say what is not there."""
    task = AdapterTask(without_boxes(caches[0], "ship"), caches[1], AdapterSettings(rank=4, training_batch_size=5))
    whole = list(task.batches(2, 0))
    assert task.steps == len(whole) == 3
    order = np.concatenate([batch.positions for batch in whole]).tolist()
    assert sorted(order) == list(range(N_TRAIN))
    another_seed = AdapterTask(task.train, caches[1], replace(task.settings, seed=1))
    for other in (task.batches(3, 0), another_seed.batches(2, 0)):
        assert np.concatenate([batch.positions for batch in other]).tolist() != order


def test_best_and_last_say_what_they_are(undisturbed, caches, tiny):
    task, run = undisturbed
    for path, epoch in ((run.best, run.best_epoch), (run.last, 2)):
        _, about = load_adapter(path, belongs_to=clip_and_tokens(tiny, "vv_vv", 3))
        assert about["epoch"] == epoch
        assert about["validation"] == run.history["val_patch_ap"].iloc[epoch]
        assert about["kinds"] == ["vv_vv", "vv_mixed"]
        assert about["seen_classes"] == task.seen
        assert [about[role] for role in ("trained_on", "chosen_on")] == [cache.dataset.origin() for cache in caches]


def test_kinds_that_share_their_patches_give_the_same_adapter_and_others_do_not(caches, tmp_path):
    runs = {kind: train_adapter(*caches, SETTINGS, SHORT, tmp_path, kind=kind)[1] for kind in HEATMAP_KINDS}
    assert len({found.folder for found in runs.values()}) == 2
    assert runs["vv_qk"].resumed_at == runs["vv_mixed"].resumed_at == 4  # done already, under the other's name
    assert not same_weights(runs["standard"].last, runs["vv_vv"].last)


def all_but(cache: TokenCache, *names: str) -> AdapterSettings:
    return replace(SETTINGS, unseen_classes=tuple(name for name in cache.dataset.classes if name not in names))


def test_the_order_of_classes_does_not_change_the_weights(caches, tmp_path):
    """Neither that of `unseen_classes` nor that of the data set's class list, bit for bit."""
    some = all_but(caches[0], "ship", "storagetank", "vehicle")
    turned = replace(some, unseen_classes=tuple(name.upper() for name in reversed(some.unseen_classes)))
    task, run = train_adapter(*caches, some, SHORT, tmp_path / "a")
    assert task.seen == ["ship", "storagetank", "vehicle"]
    assert AdapterTask(*caches, turned).identity == task.identity
    permuted = [
        with_dataset(cache, replace(cache.dataset, classes=tuple(reversed(cache.dataset.classes)))) for cache in caches
    ]
    other, again = train_adapter(*permuted, turned, SHORT, tmp_path / "b")
    assert other.seen == task.seen
    assert same_weights(again.last, run.last)


def test_a_class_without_a_box_is_left_out_and_that_is_written_down(caches, tmp_path):
    """It would learn to be nowhere; boxes of other classes have no part in it."""
    train = without_boxes(caches[0], "vehicle", "ship")
    asked = all_but(train, "vehicle", "storagetank", "harbor")
    task, run = train_adapter(train, caches[1], asked, SHORT, tmp_path / "a")
    assert task.seen == ["harbor", "storagetank"]
    assert next(task.batches(1, 0)).coverage.shape == (3, 2, 4, 4)
    about = load_adapter(run.last)[1]
    assert about["seen_classes"] == ["harbor", "storagetank"]
    assert "airplane" in about["settings"]["unseen_classes"]  # what was asked for
    every = AdapterTask(train, caches[1], SETTINGS).seen
    assert set(every) == set(caches[0].dataset.boxes["label"]) - {"vehicle", "ship"}
    _, alone = train_adapter(
        without_boxes(train, *(set(every) - {"harbor", "storagetank"})), caches[1], asked, SHORT, tmp_path / "b"
    )
    assert same_weights(run.last, alone.last)


def weighed(weight: float):
    return lambda logits, coverage: weight * (logits.sigmoid() - coverage).square().mean()


def test_a_loss_of_ones_own_is_trained_and_never_served_for_another(caches, tmp_path):
    (_, plain), (_, one), (_, two), (_, again) = (
        train_adapter(*caches, SETTINGS, SHORT, tmp_path, loss=loss)
        for loss in (None, weighed(1), weighed(2), weighed(1))
    )
    assert len({run.folder for run in (plain, one, two)}) == 3
    assert not same_weights(one.last, two.last)
    assert (one.resumed_at, two.resumed_at, again.resumed_at) == (None, None, 4)
    assert one.history["bce"].isna().all()
    assert one.history["loss"].notna().iloc[1]


def test_what_cannot_be_trained(tiny, caches, tmp_path):
    train, validation = caches
    fewer = TokenCache(tiny, validation.dataset, tmp_path, layers=2)
    none, task = [without_boxes(cache, *train.dataset.classes) for cache in caches], AdapterTask
    no_box = "the split {} has no box of the classes"
    each_refused(
        (lambda: task(none[0], validation, SETTINGS), TrainingError, no_box.format("train")),
        (lambda: task(train, none[1], SETTINGS), TrainingError, no_box.format("val")),
        (lambda: task(train, fewer, SETTINGS), CacheError, "tokens .*of different things .*layers: 2 there, 3 here"),
        (lambda: task(*caches, SETTINGS, kind="vv"), ParameterError, "unknown heatmap kind"),
    )


# ------------------------------------------------------------------------------- the patches' average precision


def test_patch_average_precision_against_torchmetrics():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, 7, 7, generator=generator)
    coverage = (torch.rand(6, 3, 7, 7, generator=generator) < 0.1).float()
    for c, found in enumerate(patch_average_precision(logits, coverage)):
        judge = binary_average_precision(logits[:, c].flatten(), coverage[:, c].flatten().long())
        assert found == pytest.approx(float(judge), abs=1e-5)  # the judge counts in 32 bits


def test_patch_average_precision_by_hand():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).view(1, 1, 2, 2)
    # a patch counts by its share
    for coverage, expected in (([0.5, 0, 0, 0], 0.5), ([1, 0, 0.5, 0], (1 + 0.5 * 1.5 / 3) / 1.5)):
        assert patch_average_precision(logits, torch.tensor(coverage).view(1, 1, 2, 2)) == pytest.approx([expected])
    # a map that is high where nothing is costs on another image too, and of equal logits the first comes first
    coverage = torch.zeros(2, 1, 2, 2)
    coverage[1, 0, 0, 1] = 1
    for of_images, expected in ((coverage, 1 / 6), (coverage.flip(0), 1 / 2)):
        assert patch_average_precision(torch.zeros(2, 1, 2, 2), of_images) == pytest.approx([expected])
    assert np.isnan(patch_average_precision(logits, torch.zeros(1, 1, 2, 2))).all()


# ----------------------------------------------------------------------------------------------- what it is for

# a toy world: 4 x 4 patches; text knows ship, harbor and airplane apart, the frozen patches of ships and harbors don't
# lie nearer to either, but do differ in a direction of their own. Airplanes are seen well, and not trained on; their
# text is not at right angles with the others, as no text is in a CLIP: what moves those may move them.
WIDTH, SIDE = 12, 4
TEXTS = dict(zip(("airplane", "harbor", "ship"), torch.eye(WIDTH)[:3], strict=True))
TEXTS["airplane"] = torch.nn.functional.normalize(TEXTS["airplane"] + 0.3 * TEXTS["harbor"], dim=0)
HIDDEN = {"harbor": torch.eye(WIDTH)[4], "ship": torch.eye(WIDTH)[5]}


class ToyClip:
    """As much of a CLIP as a training asks for."""

    embed_dim, grid, device = WIDTH, (SIDE, SIDE), torch.device("cpu")
    identity = {"model": "toy", "device": "cpu"}  # noqa: RUF012

    def encode_text(self, names, templates) -> torch.Tensor:
        return torch.stack([TEXTS[name] for name in names])


def toy_cache(split: str, n_images: int, seed: int) -> SimpleNamespace:
    """As much of a token cache: images of 40 x 40 pixels, a box a patch, 3 of each class."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 0.35 * torch.randn(1, n_images, SIDE * SIDE, WIDTH, generator=generator)
    tokens += (TEXTS["ship"] + TEXTS["harbor"]) * 0.5
    ids, rows = [f"{split}-{k}" for k in range(n_images)], []
    for image in range(n_images):
        places = torch.randperm(SIDE * SIDE, generator=generator)[:9].tolist()
        for place, name in zip(places, 3 * ["airplane", "harbor", "ship"], strict=True):
            tokens[0, image, place] += 2 * HIDDEN[name] if name in HIDDEN else 2 * TEXTS[name]
            y, x = (10.0 * side for side in divmod(place, SIDE))
            rows.append((ids[image], name, x, y, x + 10, y + 10))
    tokens /= tokens.norm(dim=-1, keepdim=True)
    images = pd.DataFrame({"image_id": ids, "path": "", "width": 40, "height": 40})
    boxes = pd.DataFrame(rows, columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"])
    data = Dataset("toy", Path(), split, "DIOR", images, boxes, tuple(TEXTS), boxes.iloc[:0])
    return SimpleNamespace(
        what="tokens", clip=ToyClip(), dataset=data, layers=1, key=split,
        tokens=lambda positions, path: tokens[:, list(positions)],
    )  # fmt: skip


@pytest.mark.slow
def test_training_tells_two_confused_classes_apart_and_keeps_what_a_third_says(tmp_path):
    train, validation = toy_cache("train", 16, 0), toy_cache("val", 8, 1)
    settings = AdapterSettings(rank=8, training_batch_size=4, anchor_weight=1.0, unseen_classes=("airplane",))
    schedule = Schedule(epochs=40, learning_rate=1e-2, warmup_epochs=1)
    drifts, correlations = {}, {}
    unseen = TEXTS["airplane"][None]
    before = next(logits_in_order(HeatmapAdapter(WIDTH, 1), validation, "vv_mixed", unseen))
    coverage = CoverageTargets(validation.dataset, ["airplane"], (SIDE, SIDE)).read(range(8))
    assert patch_average_precision(before, coverage)[0] > 0.95
    for anchor in (0.0, 1.0, 100.0):
        task, run = train_adapter(train, validation, replace(settings, anchor_weight=anchor), schedule, tmp_path)
        after = next(logits_in_order(task.model, validation, "vv_mixed", unseen))
        correlations[anchor] = spearmanr(before.flatten(), after.flatten()).statistic
        drifts[anchor] = run.history["drift"].iloc[-1]
        found = run.history["val_patch_ap"]
        if anchor == 1:
            assert found.iloc[0] < 0.3  # chance is 3 / 16
            assert found.iloc[-1] > 0.9
            assert patch_average_precision(after, coverage)[0] > 0.95
    assert drifts[100] < 0.2 * drifts[1] < 0.2 * drifts[0]
    assert correlations[100] > 0.999
    assert correlations[1] > 0.9 > correlations[0]


GOLDEN = [
    2.3315545320510864, 0.595289409160614, 3.580240809242241e-05, 1.052585482597351, 0.43794329216655187,
    2.2632768154144287, 0.5747375786304474, 0.0001996916180360131, 1.2528899908065796, 0.43794329216655187,
    0.14452193677425385, 0.004298475570976734, 0.02502310648560524,
]  # fmt: skip


def test_other_numbers_need_another_version(tmp_path):
    """Whoever changes what a training gives counts `TRAINING_VERSION` up, and writes the new figures here."""
    with one_thread():
        _, run = train_adapter(toy_cache("train", 6, 0), toy_cache("val", 3, 1), SETTINGS, SCHEDULE, tmp_path)
    figures = run.history[["loss", "bce", "drift", "scale", "val_patch_ap"]].iloc[1:].to_numpy().flatten().tolist()
    weights = load_adapter(run.last)[0].state_dict()
    found = [*figures, *(float(weights[name].abs().mean()) for name in ("down.weight", "up.weight", "layer_offsets"))]
    assert (TRAINING_VERSION, found) == (1, pytest.approx(GOLDEN, abs=1e-6))
