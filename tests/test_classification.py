from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused

from surgerylib.datasets import Dataset, load_dataset
from surgerylib.embedded.scenes import write_scenes
from surgerylib.engine.recipes import encode_prompts, prompted
from surgerylib.engine.store import HeatmapStore, Store
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import Setting
from surgerylib.study.classification import Classification, box_responses, classify
from surgerylib.study.quality import image_quality
from surgerylib.words import DIOR_CLASSES, PROMPT_SETS, check_prompts

SOURCES = [Setting("standard"), Setting("vv_qk"), Setting("vv_mixed", "surgery")]


@pytest.mark.parametrize(("grid", "size_wh"), [((7, 7), (800, 800)), ((14, 14), (300, 200)), ((5, 9), (64, 640))])
def test_the_response_in_a_box_is_that_of_the_upsampled_map(grid, size_wh):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(4, *grid)).astype(np.float32)
    low = rng.uniform(0, 0.8, (12, 2))
    boxes = np.hstack([low, low + rng.uniform(0.0005, 0.2, (12, 2))]) * np.tile(size_wh, 2)
    found = box_responses(maps, boxes, size_wh)
    assert found.shape == (12, 4)
    for box, of_box in zip(boxes, found, strict=True):
        judged = image_quality(maps, np.tile(box, (4, 1)), np.arange(4), size_wh)
        np.testing.assert_allclose(of_box, [pair.inside_mean for pair in judged], atol=2e-6)
    assert box_responses(maps, np.empty((0, 4)), size_wh).shape == (0, 4)


def classified(responses: np.ndarray, labels: list[int], images: str) -> Classification:
    """Boxes of these classes, a letter an image, that respond so."""
    names = tuple("abcdef"[: responses.shape[1]])
    boxes = pd.DataFrame({"image_id": list(images), "label": [names[label] for label in labels]})
    ids = pd.DataFrame({"image_id": sorted(set(images))})
    data = Dataset("d", Path("d"), "test", "DIOR", ids, boxes, names, pd.DataFrame(), 0)
    return Classification(data, {SOURCES[0]: responses}, {})


def test_ranks_by_hand():
    responses = np.array([[0.5, 0.1, 0.2], [0.3, 0.3, 0.1], [0.3, 0.3, 0.1], [0.0, 0.2, 0.1]])
    assert classified(responses, [0, 0, 1, 2], "xxxx").ranks(SOURCES[0]).tolist() == [0, 0, 1, 1]


def test_accuracies_by_hand():
    # of six classes so many respond more than a box's own
    labels, ranks = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 5, 2]
    responses = np.where(np.eye(6)[labels], 0.0, -1.0)
    for row, label, rank in zip(responses, labels, ranks, strict=True):
        row[[place for place in range(6) if place != label][:rank]] = 1
    case = classified(responses, labels, "xxyyzz")
    assert case.ranks(SOURCES[0]).tolist() == ranks
    of = case.accuracy(SOURCES[0]).set_index("figure")
    assert of["value"].tolist() == pytest.approx([3 / 6, 5 / 6, (3 / 4 + 0) / 2])
    assert of["value"].between(of["low"], of["high"]).all()
    one = classified(responses[:2], labels[:2], "xx").accuracy(SOURCES[0])
    assert one["low"].isna().all()
    assert one["value"].tolist() == [1, 1, 1]
    assert classified(responses[:0], [], "").accuracy(SOURCES[0])["value"].isna().all()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = write_scenes(tmp_path_factory.mktemp("scenes"), num_train=1, num_val=1, num_test=5, size=96)
    return load_dataset(folder, "test")


@pytest.fixture(scope="module")
def store(tiny, scenes, tmp_path_factory) -> HeatmapStore:
    return HeatmapStore(tiny, scenes, tmp_path_factory.mktemp("cache")).compute()


@pytest.fixture(scope="module")
def found(store, scenes, tiny):
    return classify(store.shards(), scenes, tiny.grid, SOURCES)


def test_a_store_is_classified_as_its_maps_say(found, store, scenes):
    for source in SOURCES:
        for position, image in enumerate(scenes.images.itertuples()):
            own = scenes.boxes[scenes.boxes["image_id"] == image.image_id]
            maps, boxes = store.maps(source, position)[0], own[["xmin", "ymin", "xmax", "ymax"]].to_numpy()
            expected = box_responses(maps, boxes, (image.width, image.height))
            np.testing.assert_allclose(found.responses[source][own.index], expected)
    assert found.responses[SOURCES[0]] is found.responses[SOURCES[1]]
    confusion = found.confusion(SOURCES[2])
    assert confusion.to_numpy().sum() == len(scenes.boxes)
    assert (confusion.sum(axis=1) == scenes.boxes["label"].value_counts().reindex(confusion.index).fillna(0)).all()
    nothing = replace(scenes, boxes=scenes.boxes.iloc[:0])
    empty = Classification(nothing, {SOURCES[0]: np.empty((0, len(scenes.classes)))}, {})
    assert empty.confusion(SOURCES[0]).to_numpy().sum() == 0
    right = np.diag(confusion).sum() / len(scenes.boxes)
    assert right == pytest.approx(found.accuracy(SOURCES[2]).set_index("figure").loc["top1", "value"])


def test_image_level_precision_is_the_ranking_of_the_images(found, scenes):
    """Against the area under precision and recall worked out one class at a time."""
    result = found.image_level("qk", interpolation="area", n_resamples=10)
    shown = set(scenes.boxes[["image_id", "label"]].itertuples(index=False, name=None))
    present = np.array([[(image, name) in shown for name in scenes.classes] for image in scenes.images["image_id"]])
    for label, of_class in enumerate(result.ap[:, 0]):
        if not present[:, label].any():
            assert np.isnan(of_class)
            continue
        hit = present[np.argsort(-found.image_scores["qk"][:, label], kind="stable"), label]
        precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        assert of_class == pytest.approx(envelope[hit].mean())


def test_prompt_sets_in_one_forward(found, scenes, tiny, tmp_path):
    prompts = ["name", "ensemble", "synonyms"]
    store = Store(tiny, scenes, tmp_path, prompted(tiny, scenes.classes, 3, prompts)).compute()
    other, again = (
        classify((shard[:, place] for shard in store.shards()), scenes, tiny.grid, SOURCES) for place in (0, 1)
    )
    for source in SOURCES:  # another order of the products: equal to float32's rounding
        np.testing.assert_allclose(again.responses[source], found.responses[source], atol=1e-6)
        assert np.abs(other.responses[source] - found.responses[source]).max() > 1e-3
    np.testing.assert_allclose(again.image_scores["vv"], found.image_scores["vv"], atol=1e-6)


def test_synonyms_stand_beside_the_name_in_the_mean(tiny):
    names = PROMPT_SETS["synonyms"].names(["golffield", "Harbour", "rocket-site"])
    assert [words[0] for words in names] == ["golf course", "Harbour", "rocket site"]
    assert ("golf links" in names[0], "marina" in names[1], names[2]) == (True, True, ["rocket site"])
    assert all(len(words) > 1 for words in PROMPT_SETS["synonyms"].names(DIOR_CLASSES))
    text = encode_prompts(tiny, ["golffield"], PROMPT_SETS["synonyms"])
    each = tiny.encode_text(names[0], PROMPT_SETS["synonyms"].templates)
    torch.testing.assert_close(text[0], torch.nn.functional.normalize(each.mean(dim=0), dim=0))
    plain = encode_prompts(tiny, ["ship", "dam"], PROMPT_SETS["ensemble"])
    torch.testing.assert_close(plain, tiny.encode_text(["ship", "dam"]))
    assert encode_prompts(tiny, [], PROMPT_SETS["single"]).shape == (0, tiny.embed_dim)


@pytest.mark.parametrize("names", [[], "single", ["singel"], ["name", "name"]])
def test_prompt_sets_that_cannot_be(names):
    refused(lambda: check_prompts(names), ParameterError, "prompts")
