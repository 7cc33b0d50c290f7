"""Make the embedded model: a small CLIP of open_clip's own architecture, trained on procedural scenes.

`python -m surgerylib.embedded.pretrain` renders the scenes, trains, measures, and writes `data/embedded/`. One machine,
one seed: the same weights, bit for bit. The image tower sees crops of 112 pixels (7 x 7 patches) of scenes at 224,
names every class that is well in the crop, and runs on whole scenes (14 x 14 patches) afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from ..clip import SurgeryCLIP, interpolate_positions, load_clip, open_clip
from ..datasets import load_dataset, read_image
from ..errors import SurgeryError, checked
from ..files import EMBEDDED_MODEL, atomic_write
from ..matching import BOX_COLUMNS
from ..words import DIOR_CLASSES, PROMPT_TEMPLATES, prompt_names
from .crops import IMAGE_SIZE, ScenePool, render_pool, sample_crops
from .scenes import VERSION as SCENES_VERSION
from .scenes import Scene, render_scene, scene_rng

CROP, PATCH, CONTEXT = 112, 16, 16
MODEL_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 6, "width": 128, "head_width": 32, "patch_size": PATCH},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
TEMPLATES = (*PROMPT_TEMPLATES, "{}", "a {}.", "a photo of a {}.", "an aerial photo of a {}.", "a top view of the {}.")
SYNONYMS = {
    "airplane": ("plane", "aircraft", "aeroplane", "airliner"),
    "airport": ("airfield", "runway"),
    "baseballfield": ("baseball diamond",),
    "basketballcourt": ("basketball field",),
    "bridge": ("river bridge",),
    "chimney": ("smokestack", "factory chimney"),
    "dam": ("reservoir dam",),
    "Expressway-Service-area": ("highway service area", "rest area"),
    "Expressway-toll-station": ("toll booth", "toll station", "highway toll station"),
    "golffield": ("golf field", "golf links"),
    "groundtrackfield": ("running track", "athletics track", "track field"),
    "harbor": ("harbour", "marina", "port"),
    "overpass": ("flyover", "road interchange"),
    "ship": ("boat", "vessel"),
    "stadium": ("arena",),
    "storagetank": ("oil tank", "tank"),
    "tenniscourt": ("tennis field",),
    "trainstation": ("railway station",),
    "vehicle": ("car", "truck", "automobile"),
    "windmill": ("wind turbine",),
}
UNSEEN = 200  # scenes that the closing measurement draws
MEASURED = ("standard_peak", "vv_peak", "standard_inverted", "vv_inverted")


Count = Annotated[int, Field(ge=1)]


@checked
class Settings:
    """What a training run depends on, besides the code; `workers` is the number of processes and of torch's threads."""

    seed: int = 0
    steps: Count = 4000
    scenes: Count = 6000
    batch: Count = 64
    learning_rate: float = 1e-3
    matrix_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: Count = 100
    workers: Count = 2


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] with open_clip's default mean and standard deviation."""
    mean, std = (torch.tensor(v) * 255 for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def training_prompts() -> list[list[str]]:
    """For each class, in DIOR's order, the names that training speaks of it by; the first is the default one."""
    names = prompt_names(DIOR_CLASSES)
    return [[name, *SYNONYMS[label]] for name, label in zip(names, DIOR_CLASSES, strict=True)]


def build_model(image_size: int) -> open_clip.CLIP:
    """The embedded architecture, for a given image size."""
    config = {**MODEL_CONFIG, "vision_cfg": {**MODEL_CONFIG["vision_cfg"], "image_size": image_size}}
    return open_clip.CLIP(**config, init_logit_scale=math.log(10.0), init_logit_bias=-4.0)


def train(settings: Settings, pool: ScenePool) -> open_clip.CLIP:
    """Train the model on crops with a sigmoid loss, every image against every class name.

    Returns:
        the model for 224-pixel images, in eval mode, with rounded (fp16-exact) weights.
    """
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = build_model(CROP).train()
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    tokens = [[tokenizer([t.format(name) for t in TEMPLATES]) for name in names] for names in training_prompts()]
    optimizers = _optimizers(model, settings)
    running = math.nan
    bar = tqdm(range(settings.steps), desc="training")
    for step in bar:
        images, truth = sample_crops(pool, settings.batch, CROP, generator)
        text = model.encode_text(_sample_prompts(tokens, generator), normalize=True)
        image = model.encode_image(normalise(images), normalize=True)
        logits, known = model.logit_scale.exp() * image @ text.T + model.logit_bias, ~truth.isnan()
        losses = F.binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
        loss = losses[known].sum() / len(logits)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        pace = min((step + 1) / settings.warmup, 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
        for optimizer, rate in zip(optimizers, (settings.matrix_rate, settings.learning_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * pace
            optimizer.step()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
    return enlarge(model, torch.cat([name.flatten() for names in tokens for name in names]).unique())


def _optimizers(model: nn.Module, settings: Settings) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, which then learn in about two thirds of the steps; AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if "resblocks" in name and p.ndim == 2]
    others = [p for name, p in named if not ("resblocks" in name and p.ndim == 2)]
    return (
        torch.optim.Muon(matrices, settings.matrix_rate, settings.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _sample_prompts(tokens: Sequence[Sequence[Tensor]], generator: torch.Generator) -> Tensor:
    """One prompt a class: the default name half the time, a synonym else; any template. [C, context]."""
    chosen = []
    for names in tokens:
        u, v = torch.rand(2, generator=generator).tolist()
        name = names[0] if u < 0.5 else names[int((u - 0.5) * 2 * len(names))]
        chosen.append(name[int(v * len(name))])
    return torch.stack(chosen)


@torch.no_grad()
def enlarge(small: open_clip.CLIP, used: Tensor) -> open_clip.CLIP:
    """From the training crop to 224 pixels: positions interpolated once, rows of other tokens zeroed, fp16 weights."""
    state = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    grid, wide = (CROP // PATCH,) * 2, (IMAGE_SIZE // PATCH,) * 2
    state["visual.positional_embedding"] = interpolate_positions(state["visual.positional_embedding"], grid, wide)
    unused = torch.ones(len(state["token_embedding.weight"]), dtype=torch.bool)
    unused[used] = False
    state["token_embedding.weight"][unused] = 0
    large = build_model(IMAGE_SIZE)
    large.load_state_dict({name: t.half().float() if t.is_floating_point() else t for name, t in state.items()})
    return large.eval()


def save(model: open_clip.CLIP, out_dir: Path, settings: Settings) -> Path:
    """Write `model.safetensors` (fp16) and `open_clip_config.json`; each appears whole or not at all."""
    config = {
        "model_cfg": {**MODEL_CONFIG, "init_logit_bias": -4.0},
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
            "resize_mode": "squash",
        },
    }
    atomic_write(out_dir / "open_clip_config.json", json.dumps(config, indent=2) + "\n")
    state = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in model.state_dict().items()}
    about = {**asdict(settings), "scenes_version": SCENES_VERSION, "license": "Apache-2.0", "format": "pt"}
    metadata = {name: str(value) for name, value in about.items()}
    return atomic_write(out_dir / "model.safetensors", safetensors.torch.save(state, metadata=metadata))


@torch.no_grad()
def evaluate(clip: SurgeryCLIP, scenes: Iterable[Scene]) -> dict[str, float | int | dict[str, float]]:
    """Does the model name what is there, and where do its two paths point?

    Whole images, squashed to the model's size; every (image, class in it) pair counts once; maps are cosine maps of
    the last layer on the patch grid.

    Returns:
        images, pairs: how many were judged.
        top1: share of images whose best-scoring class (class token) is in the image.
        standard_peak, vv_peak: share of pairs whose map peaks in a patch with its centre inside a box of the class.
        standard_inverted, vv_inverted: share of pairs whose mean response is lower inside the boxes than outside.
        chance: mean share of patch centres inside, what a random peak would reach.
        vv_peak_per_class: the same figure for each class.
    """
    text = clip.encode_text(prompt_names(DIOR_CLASSES))
    rows, hits = [], []
    for scene in scenes:
        tokens = clip.encode_image(clip.preprocess(scene.image)[None])
        hits.append(DIOR_CLASSES[(tokens.qk[0, 0, 0] @ text.T).argmax()] in scene.labels)
        for name in sorted(set(scene.labels)):
            own = scene.boxes_xyxy[[other == name for other in scene.labels]]
            inside = _patches_inside(own, scene.image.shape[:2], tokens.grid)
            row = {"label": name, "chance": inside.float().mean().item()}
            for path, patches in (("standard", tokens.qk), ("vv", tokens.vv)):
                response = patches[0, 0, 1:] @ text[DIOR_CLASSES.index(name)]
                contrast = response[inside].mean() - response[~inside].mean()  # NaN where one side is empty
                row[f"{path}_peak"] = float(inside[response.argmax()])
                row[f"{path}_inverted"] = math.nan if contrast.isnan() else float(contrast < 0)
            rows.append(row)
    frame = pd.DataFrame(rows, columns=["label", "chance", *MEASURED])
    means = frame.drop(columns="label").mean().round(4).to_dict()
    per_class = frame.groupby("label")["vv_peak"].mean().round(3).to_dict()
    top1 = round(float(np.mean(hits)), 4) if hits else math.nan
    return {"images": len(hits), "pairs": len(frame), "top1": top1, **means, "vv_peak_per_class": per_class}


def _patches_inside(boxes_xyxy: np.ndarray, size_hw: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Which patch centres lie in any of the boxes [K, 4] of an image: bool [N]."""
    rows, columns = ((torch.arange(n) + 0.5) * (side / n) for n, side in zip(grid, size_hw, strict=True))
    x0, y0, x1, y1 = torch.from_numpy(boxes_xyxy).float().T[..., None]
    in_x, in_y = (columns >= x0) & (columns <= x1), (rows >= y0) & (rows <= y1)  # [K, w], [K, h]
    return (in_y[:, :, None] & in_x[:, None, :]).any(0).flatten()


def _scenes_of(root: Path, split: str) -> Iterator[Scene]:
    """The images of a dataset on disk with their boxes."""
    dataset = load_dataset(root, split)
    boxes = dict(list(dataset.boxes.groupby("image_id")))
    for row in dataset.images.itertuples():
        own = boxes.get(row.image_id, dataset.boxes[:0])
        yield Scene(read_image(row.path), own[BOX_COLUMNS].to_numpy(float), tuple(own["label"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Render, train, write, measure; or only measure."""
    parser = argparse.ArgumentParser(prog="python -m surgerylib.embedded.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODEL, help="folder of the model")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--measure", type=Path, metavar="DATASET",
                        help="train nothing: measure the model in --out on this dataset's test split")  # fmt: skip
    arguments = vars(parser.parse_args(argv))
    out, measured = arguments.pop("out"), arguments.pop("measure")
    settings = Settings(**arguments)
    torch.set_num_threads(settings.workers)  # the order of sums, hence the last bit, depends on it
    if measured is None:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs a tenth of the time, changes no result
        started = time.monotonic()
        pool = render_pool(settings.scenes, seed=settings.seed, workers=settings.workers)
        rendered = time.monotonic()
        path = save(train(settings, pool), out, settings)
        print(f"{path}: rendering {rendered - started:.0f} s, training {time.monotonic() - rendered:.0f} s")
        scenes = (render_scene(scene_rng(settings.seed, "pretrain_check", index)) for index in range(UNSEEN))
    else:
        scenes = _scenes_of(measured, "test")
    clip = load_clip(f"local-dir:{out.resolve()}", str(out / "model.safetensors"), device="cpu", depth=6)
    print(json.dumps(evaluate(clip, scenes), indent=2))


if __name__ == "__main__":
    try:
        main()
    except SurgeryError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
