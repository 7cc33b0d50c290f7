"""What the explorer shows, to go on with elsewhere: parameters for the workbook, and Python that gives the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import yaml
from pydantic import Field

from ..errors import checked
from ..files import EMBEDDED, checkpoint_file
from ..heatmaps import Setting
from .view_model import Exploration, Shown, words_of


@checked
class Origin:
    """Model and data by the names of the notebooks' parameters; `image_size` None is the model's own."""

    dataset: str = EMBEDDED
    split: str = "test"
    model: str = EMBEDDED
    checkpoint: str | None = None
    image_size: Annotated[int, Field(ge=1)] | None = None
    depth: int = 6
    device: str = "auto"
    adapter: str | None = None


def setting_yaml(origin: Origin, shown: Shown) -> str:
    """The setting as a configuration of the workbook: `python -m surgerylib run --config FILE`.

    The image and the phrases stand there as comments: the workbook asks for the classes of the whole split.
    """
    question, subject = shown.question, shown.subject
    setting = question.of_kind(question.kinds[-1])
    several = {"kinds": list(question.kinds)} if len(question.kinds) > 1 else {}
    values = {**asdict(origin), **several, **setting.parameters(), "adapter": None}
    if question.adapted:  # the workbook shows adapted maps beside the others, under a floor of their own
        values |= {"adapter": origin.adapter, "adapter_floor": values["floor"], "floor": None}
    lines = [
        f"# {setting.describe()}" + (", maps through the trained adapter" if question.adapted else ""),
        f"# seen on {subject.path or subject.name}, asked for {question.shown!r} among {len(question.asked)}",
    ]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return "\n".join(" ".join(line.split()) for line in lines) + "\n" + text


def python_call(origin: Origin, shown: Shown, exploration: Exploration) -> str:
    """Python that gives the boxes of what is shown, for each kind, with the public interface alone."""
    question, subject = shown.question, shown.subject
    chosen, plain = asdict(question.setting), asdict(Setting())
    names = ("working_size", "min_side", "max_side", "box_score", "nms_iou", "floor")
    changed = ["percentile", *(name for name in names if chosen[name] != plain[name])]
    options = "".join(f", {name}={chosen[name]!r}" for name in changed)
    weights = checkpoint_file(origin.checkpoint)
    weights = origin.checkpoint if weights is None else str(weights)
    device = "" if origin.device == "auto" else f", device={origin.device!r}"
    size = "" if origin.image_size is None else f", {origin.image_size}"
    names = ["load_clip", "read_image", "extract_boxes", "heatmaps", *(["load_adapters"] if question.adapted else [])]
    layers, through = f"{question.setting.layers}", ""
    if question.adapted:
        layers, through = "adapters[kind].model.num_layers", ", adapter=adapters[kind].model"
    lines = [
        f"from surgerylib import {', '.join(sorted(names))}",
        "",
        f"clip = load_clip({origin.model!r}, {weights!r}, depth={origin.depth}{device})",
        f"image = read_image({subject.path or subject.name!r})" + ("" if subject.path else "  # the file uploaded"),
        f"pixels = clip.preprocess(image{size})[None]",
        f"text = clip.encode_text({words_of(question.asked, exploration.classes)!r})",
        *([f"adapters = load_adapters({origin.adapter!r}, clip)"] if question.adapted else []),
        f"for kind in {list(question.kinds)!r}:",
        f"    tokens = clip.encode_image(pixels, last_layers={layers})",
        f"    maps = heatmaps(tokens, text, kind, similarity={question.setting.similarity!r}{through})",
        f"    boxes = extract_boxes(maps[0, {question.asked.index(question.shown)}], image.shape[1::-1]{options})",
        "    print(kind, boxes.round(2))",
    ]
    return "\n".join(lines) + "\n"
