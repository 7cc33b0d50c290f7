"""Making the embedded model: deterministic, loadable by plain open_clip, small; and the one that ships."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file

from surgerylib.clip import load_clip, open_clip
from surgerylib.embedded import crops as scene_crops
from surgerylib.embedded import pretrain
from surgerylib.embedded.crops import ScenePool, render_pool, sample_crops
from surgerylib.embedded.pretrain import CROP, TEMPLATES, Settings, build_model, main, save, train
from surgerylib.embedded.scenes import Scene, write_scenes
from surgerylib.errors import OutputError, ParameterError
from surgerylib.words import DIOR_CLASSES, PROMPT_TEMPLATES, prompt_names

SHIP, DAM = DIOR_CLASSES.index("ship"), DIOR_CLASSES.index("dam")
TINY = Settings(steps=3, scenes=12, batch=4, warmup=1)


def test_training_is_deterministic_and_the_file_is_plain_open_clip(tmp_path):
    pool = render_pool(12, seed=3, workers=1)
    first, second = train(TINY, pool).state_dict(), train(TINY, pool).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)

    model = build_model(224)
    model.load_state_dict(first)
    path = save(model, tmp_path, TINY)
    assert path.stat().st_size < 8_000_000
    with safe_open(path, "pt") as file:
        assert file.metadata().items() >= {"license": "Apache-2.0", "steps": "3"}.items()
    stock = open_clip.CLIP(**json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"])
    stock.load_state_dict(load_file(path), strict=True)
    loaded = load_clip(f"local-dir:{tmp_path}", str(path), device="cpu")
    assert (loaded.image_size, loaded.num_layers) == (224, 6)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor.float(), first[name].float()), name  # nothing was lost in fp16


def _one_scene(boxes, labels):
    """A grey scene whose objects are squares of their own colour, and its pool."""
    image = torch.full((1, 224, 224, 3), 100, dtype=torch.uint8)
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        image[0, y0:y1, x0:x1] = 200 + label
    # an unused row at the end, as in every pool
    return ScenePool(image, torch.tensor([[*boxes, [0] * 4]]).float(), torch.tensor([[*labels, -1]]))


def test_truth_of_crops(monkeypatch):
    for share in ("ERASED", "PASTED"):
        monkeypatch.setattr(scene_crops, share, 0)
    pool = _one_scene([[100, 100, 124, 124], [0, 0, 30, 224]], [SHIP, DAM])
    crops, truth = sample_crops(pool, 200, CROP, torch.Generator().manual_seed(0))
    assert crops.shape == (200, CROP, CROP, 3)
    share = (crops[..., 0] == 200 + SHIP).float().mean((1, 2)) * CROP**2 / 24**2
    assert torch.equal(truth[:, SHIP] == 1, share >= 0.5)
    assert torch.equal(truth[:, SHIP] == 0, share <= 0.15)
    assert set(truth[:, DAM].nan_to_num(-1).tolist()) == {0.0, 1.0, -1.0}
    assert (truth[:, DIOR_CLASSES.index("bridge")] == 0).all()


@pytest.mark.parametrize("erased", [0, 1])
def test_erased_objects_are_gone_and_pasted_ones_count(monkeypatch, erased):
    pool = _one_scene([[100, 100, 124, 124], [10, 60, 40, 90]], [SHIP, DAM])
    for name, share in {"AIMED": 1, "ERASED": erased, "PASTED": 1 - erased}.items():
        monkeypatch.setattr(scene_crops, name, share)
    crops, truth = sample_crops(pool, 100, CROP, torch.Generator().manual_seed(1))
    for label, side in ((SHIP, 24), (DAM, 30)):
        area = (crops[..., 0] == 200 + label).float().sum((1, 2))
        assert (truth[:, label][area == 0] == 0).all()
        assert (area[truth[:, label] == 1] >= 0.5 * side**2).all()
        assert (truth[:, label] == 1).any()
        assert (truth[:, label] == 0).any() or not erased


def test_prompts_hold_the_defaults():
    assert set(PROMPT_TEMPLATES) <= set(TEMPLATES)
    prompts = pretrain.training_prompts()
    assert [names[0] for names in prompts] == prompt_names(DIOR_CLASSES)
    assert min(map(len, prompts)) >= 2
    spoken = [template.format(name) for template in TEMPLATES for names in prompts for name in names]
    tokens = open_clip.SimpleTokenizer(context_length=64)(spoken)
    assert (tokens > 0).sum(dim=1).max() <= 16, "a prompt is cut off by the context length"


def test_bad_settings(tmp_path):
    refused(lambda: main(["--steps", "0"]), ParameterError, "steps must be greater than or equal to 1, got 0")
    (tmp_path / "file").write_text("")
    refused(lambda: save(build_model(224), tmp_path / "file" / "out", TINY), OutputError, "cannot be written")


def test_shipped_model_knows_its_classes_and_shows_the_phenomenon(tmp_path, capsys):
    write_scenes(tmp_path / "scenes", num_train=0, num_val=0, num_test=40, seed=12345)
    main(["--measure", str(tmp_path / "scenes")])
    figures = json.loads(capsys.readouterr().out)
    # well below the figures in data/embedded/README.md, since 40 scenes are few
    assert figures["top1"] > 0.75
    assert figures["vv_peak"] > 0.55
    assert figures["vv_peak"] > 3 * figures["standard_peak"]
    assert figures["vv_inverted"] < 0.2 < figures["standard_inverted"]


def test_evaluation_of_an_image_without_objects():
    scene = Scene(np.zeros((50, 70, 3), np.uint8), np.empty((0, 4)), ())
    empty = pretrain.evaluate(load_clip("embedded", device="cpu"), [scene])
    assert (empty["images"], empty["pairs"], empty["top1"]) == (1, 0, 0.0)
