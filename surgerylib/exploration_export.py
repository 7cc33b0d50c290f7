"""What the explorer shows, to go on with elsewhere: parameters for the workbook, and Python that gives the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import yaml

from .exploration import Exploration, Question, Subject, words_of
from .extraction import BoxSettings
from .locations import checkpoint_file


@dataclass(frozen=True)
class Origin:
    """Model and data by the names of the notebooks' parameters; plain values.

    Attributes:
        dataset, split, model, checkpoint, depth, adapter: as there.
        image_size: None for the model's own.
    """

    dataset: str
    split: str
    model: str
    checkpoint: str | None
    depth: int
    adapter: str | None = None
    image_size: int | None = None

    def parameters(self) -> dict[str, Any]:
        """The parameters of every notebook."""
        names = ("dataset", "split", "model", "checkpoint", "image_size", "depth")
        return {name: getattr(self, name) for name in names}


def setting_yaml(origin: Origin, question: Question, subject: Subject) -> str:
    """The setting as a configuration of the workbook: `python -m surgerylib run --config FILE`.

    The image and the phrases stand there as comments: the workbook asks for the classes of the whole split.
    """
    setting = question.of_kind(question.kinds[-1])
    several = {"kinds": list(question.kinds)} if len(question.kinds) > 1 else {}
    values = {**origin.parameters(), **several, **setting.parameters(), "adapter": None}
    if question.adapted:  # the workbook shows adapted maps beside the others, under a floor of their own
        values |= {"adapter": origin.adapter, "adapter_floor": setting.boxes.floor, "floor": None}
    lines = [
        f"# {setting.describe()}" + (", maps through the trained adapter" if question.adapted else ""),
        f"# seen on {subject.path or subject.name}, asked for {question.shown!r} among {len(question.asked)}",
    ]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return "\n".join(" ".join(line.split()) for line in lines) + "\n" + text


def python_call(origin: Origin, question: Question, exploration: Exploration) -> str:
    """Python that gives the boxes of what is shown, for each kind, with the public interface alone."""
    subject, boxes = exploration.subject, question.setting.boxes
    place = question.asked.index(question.shown)
    plain = asdict(BoxSettings())
    options = "".join(
        f", {name}={value!r}" for name, value in asdict(boxes).items() if name == "percentile" or value != plain[name]
    )
    sources = {kind: exploration.source(question, kind) for kind in question.kinds}
    layers = max(source.last_layers for source in sources.values())
    size = "" if origin.image_size is None else f", {origin.image_size}"
    names = ["load_clip", "read_image", "extract_boxes", "heatmaps"]
    names += ["load_adapters"] if question.adapted else []
    weights = checkpoint_file(origin.checkpoint)
    weights = origin.checkpoint if weights is None else str(weights)
    lines = [
        f"from surgerylib import {', '.join(sorted(names))}",
        "",
        f"clip = load_clip({origin.model!r}, {weights!r}, depth={origin.depth})",
        f"image = read_image({subject.path or subject.name!r})",
        f"tokens = clip.encode_image(clip.preprocess(image{size})[None], last_layers={layers})",
        f"text = clip.encode_text({words_of(question.asked, exploration.classes)!r})",
    ]
    if question.adapted:
        lines.append(f"adapters = load_adapters({origin.adapter!r}, clip)")
    lines.append(f"for kind in {list(question.kinds)!r}:")
    through = ", adapter=adapters[kind].model" if question.adapted else ""
    lines += [
        f"    maps = heatmaps(tokens, text, kind, similarity={question.setting.source.similarity!r}{through})",
        f"    boxes = extract_boxes(maps[0, {place}], image.shape[1::-1]{options})  # {question.shown}",
        "    print(kind, boxes.round(2))",
    ]
    return "\n".join(lines) + "\n"
