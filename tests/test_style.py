"""One visual language over all figures, decided in `style` and nowhere else; and what figures of the maps say."""

from __future__ import annotations

import ast
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged_frames import judged
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from surgerylib.boxes import extract_many
from surgerylib.engine.tasks import Schedule
from surgerylib.figures import evaluation, maps, per_class, style, sweep, training
from surgerylib.files import PROJECT_ROOT
from surgerylib.heatmaps import Setting
from surgerylib.study.example_images import Example, example_pairs
from surgerylib.words import ALL, ERROR_TYPES, METHOD_NAMES, SEEN, STATES, UNSEEN

MODULES = sorted(path for path in (PROJECT_ROOT / "surgerylib" / "figures").glob("[a-z]*.py") if path.stem != "style")
SIZES = {"fontsize", "labelsize", "titlesize", "title_fontsize"}
# Machado et al. 2009, complete deficiency, on linear RGB
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, deficiency: str) -> np.ndarray:
    """CIE L*a*b* of a colour as seen with a deficiency of colour vision."""
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ seen / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


KIND_COLOURS = [look.colour for look in style.KIND_LOOKS.values()] + sorted({look.colour for look in style.OTHER_LOOKS})


@pytest.mark.parametrize(
    "colours",
    [
        KIND_COLOURS,
        style.STATE_COLOURS.values(),
        (style.TRUTH, style.PREDICTION, style.PEAK),
        (style.METHOD_COLOURS["oracle"], style.METHOD_COLOURS["cam_peak"], style.PALE),
        (style.DARK, *style.TERM_COLOURS),
    ],
)
def test_colours_of_one_figure_are_told_apart_by_everyone(colours):
    for deficiency in DEFICIENCIES:
        seen = [lab(colour, deficiency) for colour in colours]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15, deficiency


def test_the_colours_of_the_kinds_mean_nothing_else():
    others = [style.TRUTH, style.PREDICTION, style.PEAK, style.MASK, style.DARK, style.GREY, style.PALE]
    others += [*style.STATE_COLOURS.values(), *style.METHOD_COLOURS.values(), *style.TERM_COLOURS]
    assert not set(KIND_COLOURS) & set(others)


def test_any_name_of_a_kind_has_a_look_of_its_own():
    names = ["mine", "standard = vv_qk", "vv_vv = vv_mixed", "naclip = clearclip", *(f"try {n}" for n in range(10))]
    looks = style.kind_looks([*names, "mine"])
    assert list(looks) == names
    assert len(set(looks.values())) == len(names)
    assert looks["vv_vv = vv_mixed"] == style.KIND_LOOKS["vv_mixed"]
    assert style.kind_looks([]) == {}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_of_figures_has_no_colours_sizes_or_figures_of_its_own(module: Path):
    source = module.read_text(encoding="utf-8")
    tree = ast.parse(source)
    colours = re.findall(r"#([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})\b", source)
    assert [colour for colour in colours if len(set(colour)) > 1] == []  # greys of a ground are no language
    assert not re.search(r"\bFigure\(|pyplot", source)
    sizes = [word.value for word in ast.walk(tree) if isinstance(word, ast.keyword) and word.arg in SIZES]
    for of in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
        sizes += [value for key, value in zip(of.keys, of.values, strict=True) if getattr(key, "value", "") in SIZES]
    assert [ast.unparse(size) for size in sizes if isinstance(size, ast.Constant) and size.value != "medium"] == []
    for function in tree.body:
        returned = ast.unparse(function.returns) if getattr(function, "returns", None) else ""
        if returned == "Figure" and not function.name.startswith("_"):
            assert [ast.unparse(mark).split(".")[-1] for mark in function.decorator_list] == ["styled"], function.name


KINDS = ["standard", "vv_qk", "vv_mixed", "mine"]
CLASSES = ["Expressway-Service-area", "ship", *(f"class {number}" for number in range(18))]
IMAGE = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
HEATMAP = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)
BOX = np.array([10.0, 10, 50, 60])
TRUTHS = pd.DataFrame([("a", "ship", *BOX)], columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"])
FOUND = TRUTHS.assign(score=-0.25, kind="mine")


CURVE = pd.DataFrame({"label": CLASSES[0], "recall": [0.1, 0.5, 0.9], "precision": [0.9, 0.5, 0.2]})
CURVES = {"standard = vv_qk": CURVE, "mine": CURVE}
BY_CLASS = pd.DataFrame(
    np.random.default_rng(2).uniform((20, 0), (300, 0.6), (20, 2)), index=CLASSES, columns=["side", "mean_ap"]
).assign(n_boxes=10, **{f"gain_{error}": 0.1 for error in ERROR_TYPES})
EXAMPLE = Example(
    IMAGE, "Expressway-Service-area on 00321", TRUTHS, dict.fromkeys(STATES, HEATMAP), dict.fromkeys(STATES, FOUND)
)


def every(**values) -> pd.DataFrame:
    """A row for every combination of the values, a column each."""
    return pd.DataFrame(itertools.product(*values.values()), columns=[*values])


def history(**columns: float) -> pd.DataFrame:
    return pd.DataFrame({"epoch": range(5), "step": range(0, 50, 10), "loss": 1.0, **columns})


SCHEDULE = Schedule(epochs=4)
PROTOCOLS = {"present": "Image labels given (present)", "all": "Every class asked (all)"}
MAPS = every(protocol=PROTOCOLS, kind=KINDS, iou_threshold=[0.05, 0.1, 0.5]).assign(map=0.3, low=0.2, high=0.4)
INTERVAL = {"value": 0.4, "low": 0.3, "high": 0.5}
TITLE = (
    "A finding that is somewhat longer than a line of a figure is wide, as some of them are, with their numbers 0.12"
)
FIGURES = {
    "map_curves": lambda: maps.map_curves(MAPS, PROTOCOLS),
    "class_bars": lambda: maps.class_bars(
        every(label=CLASSES, kind=KINDS[2:]).assign(ap=0.4, low=0.1, high=0.9, n_ground_truth=1234), "ap", TITLE, "AP"
    ),
    "three_columns": lambda: maps.three_columns(IMAGE, HEATMAP, TRUTHS, FOUND, "ship", "00001: ship, vv_mixed"),
    "kinds_grid": lambda: maps.kinds_grid(IMAGE, dict.fromkeys([*KINDS, "b"], HEATMAP), TRUTHS, FOUND, "ship", TITLE),
    "extraction_steps": lambda: maps.extraction_steps(IMAGE, HEATMAP, TRUTHS, label=CLASSES[0], patch_size=16),
    "percentile_curves": lambda: sweep.percentile_curves(
        every(protocol=PROTOCOLS, kind=KINDS, percentile=[30.0, 50, 75, 90, 95]).assign(**INTERVAL),
        PROTOCOLS, value_label="mAP", marks={"best": (75, "mine")},
    ),
    "percentile_iou_grid": lambda: sweep.percentile_iou_grid(
        dict.fromkeys(PROTOCOLS, pd.DataFrame(0.123, index=[30.0, 75], columns=[0.05, 0.1, 0.15, 0.2, 0.3, 0.5])),
        PROTOCOLS,
    ),
    "percentile_multiples": lambda: sweep.percentile_multiples(
        IMAGE, HEATMAP, TRUTHS, "ship", [30, 50, 60, 70, 75], title=TITLE
    ),
    "inside_outside": lambda: sweep.inside_outside(
        dict.fromkeys(KINDS[1:], pd.DataFrame({"outside_mean": [0.1, 0.2], "inside_mean": [0.3, 0.1]}))
    ),
    "difference_bars": lambda: sweep.difference_bars(
        pd.DataFrame([("sides > 20", 0.1, 0.05, 0.2)], columns=["name", "difference", "low", "high"]),
        title=TITLE,
        xlabel="mAP",
    ),
    "method_bars": lambda: training.method_bars(every(method=METHOD_NAMES, figure=["mean"]).assign(**INTERVAL), TITLE),
    "training_curves": lambda: training.training_curves(
        history(giou=0.5, l1=0.1, val_iou=0.5, val_share_50=0.4, val_peak_iou=0.3, positives_per_box=8.0,
                share_without_positive=0.1),
        [SCHEDULE.rate(step, 3) for step in range(9)], 3,
    ),
    "prediction_steps": lambda: training.prediction_steps(
        [(IMAGE, "ship on 00001")], [BOX[None]],
        {f"epoch {epoch}": [(BOX[None], BOX, "best cell 0.54, peak 0.54")] for epoch in (0, 20, 40)},
    ),
    "iou_distributions": lambda: evaluation.iou_distributions(
        pd.DataFrame({name: [0.1, 0.6] for name in METHOD_NAMES}), list(METHOD_NAMES), TITLE
    ),
    "class_method_bars": lambda: evaluation.class_method_bars(
        every(group=CLASSES, method=METHOD_NAMES, figure=["mean"]).assign(n_boxes=12, **INTERVAL), TITLE
    ),
    "box_examples": lambda: evaluation.box_examples(
        {"best": [(IMAGE, BOX, np.stack([BOX, BOX + 5]), "Expressway-Service-area\n00001: 0.97, peak 0.86")] * 4}
    ),
    "confusion_heatmap": lambda: evaluation.confusion_heatmap(
        pd.DataFrame(np.diag(np.full(20, 12)), index=CLASSES, columns=CLASSES), TITLE
    ),
    "ap_against_size": lambda: per_class.ap_against_size(BY_CLASS, "mean_ap", TITLE, "mean AP", 32.0, kind="mine"),
    "gap_dots": lambda: per_class.gap_dots(
        every(label=CLASSES, kind=CURVES).assign(gap=0.2, gap_low=0.1, gap_high=0.3), CLASSES, TITLE
    ),
    "precision_recall_grid": lambda: per_class.precision_recall_grid(
        CURVES, pd.Series(0.4, index=CLASSES), CLASSES, TITLE
    ),
    "error_bars": lambda: per_class.error_bars(BY_CLASS, CLASSES, TITLE, "gain in mean AP"),
    "class_examples": lambda: per_class.class_examples([("good:", IMAGE, HEATMAP, TRUTHS, FOUND, "00001")] * 4),
    "before_after": lambda: training.before_after(
        every(group=[ALL, SEEN, UNSEEN], state=STATES, reference=[""]).merge(MAPS, how="cross").rename(
            columns={"map": "value"}
        ), {ALL: CLASSES, SEEN: CLASSES[:9], UNSEEN: CLASSES[9:]}, "mine", TITLE
    ),
    "example_rows": lambda: training.example_rows([EXAMPLE, EXAMPLE._replace(truth=TRUTHS.iloc[:0])]),
    "adapter_curves": lambda: training.adapter_curves(
        dict.fromkeys(CURVES, history(classification=0.1, bce=0.3, dice=0.6, sparsity=0.1, val_patch_ap=0.4)),
        SCHEDULE.epochs, dict.fromkeys(CURVES, 2),
    ),
}  # fmt: skip


def letters(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    hidden = {id(text) for axis in figure.axes if not axis.get_visible() for text in axis.findobj(Text)}
    return [text for text in found if id(text) not in hidden]


def title_boxes(figure: Figure) -> list[tuple[str, np.ndarray]]:
    titles = [part for axis in figure.axes for part in (axis.title, axis._left_title) if part.get_text().strip()]
    titles += [figure._suptitle] if figure.get_suptitle() else []
    return [(title.get_text(), title.get_window_extent().extents) for title in titles]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_can_be_read_fits_the_page_and_takes_a_kind_of_any_name(name: str):
    figure = FIGURES[name]()
    assert figure.get_figwidth() <= style.WIDTH
    small = {text.get_text(): text.get_fontsize() for text in letters(figure) if text.get_fontsize() < style.SMALLEST}
    assert small == {}
    # saving crops nothing, and adds no more than its own margin
    assert figure.get_tightbbox().width + 2 * 0.04 <= style.WIDTH + 0.15, "something sticks out"
    for (one, a), (other, b) in itertools.combinations(title_boxes(figure), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (one, other)


def test_every_public_figure_is_looked_at_here():
    public = {
        function.name
        for module in MODULES
        for function in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(function, ast.FunctionDef) and ast.unparse(function.returns or ast.Constant("")) == "Figure"
    }
    assert public == set(FIGURES)


# ----------------------------------------------------------------------------------------- what figures of the maps say


def test_figures_draw_without_boxes_and_with_a_constant_map():
    flat = np.zeros_like(HEATMAP)
    for found, truth in ((FOUND, TRUTHS.iloc[:0]), (FOUND.iloc[:0], TRUTHS)):
        maps.three_columns(IMAGE, flat, truth, found, "ship", "a: ship").draw_without_rendering()
        maps.kinds_grid(IMAGE, {"mine": flat}, truth, found, "ship", "title").draw_without_rendering()
        maps.extraction_steps(IMAGE, flat, truth, label="ship", patch_size=32).draw_without_rendering()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("place", "line"), [(10, "line: percentile 75"), (90, "line: floor {:.3g}"), (101, "all below floor {:.3g}")]
)
def test_steps_with_a_floor_show_the_line_that_the_mask_has(place, line):
    floor = float(np.percentile(HEATMAP, place)) if place <= 100 else 9.0
    settings = Setting(floor=floor)
    figure = maps.extraction_steps(IMAGE, HEATMAP, TRUTHS.iloc[:0], label="ship", patch_size=32, boxes=settings)
    titles = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert f"3  bilinear to 224, {line.format(floor)}" in titles
    (found,) = extract_many(HEATMAP, (224, 224), [settings])
    (masked,) = (axis for title, axis in titles.items() if title.startswith("4"))
    assert masked.images[0].get_array().mean() == pytest.approx(found.activated)


def test_curves_and_bars_say_when_a_class_has_no_boxes():
    found = pd.concat([FOUND.assign(kind=kind) for kind in style.KIND_LOOKS], ignore_index=True)
    truth = pd.concat([TRUTHS, TRUTHS.assign(image_id="b")], ignore_index=True)
    result = judged(found, truth, image_ids=["a", "b"], classes=["ship", "dam"], n_resamples=20)
    rows = result.by_class().query("protocol == 'all' and iou_threshold == 0.05")
    axis = maps.class_bars(rows, "ap", "title", "AP").axes[0]
    assert [text.get_text().strip() for text in axis.texts] == ["no boxes in this split"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dam  (0)", "ship  (2)"]


def test_examples_show_many_classes_and_no_image_twice():
    rows = [("1", "ship"), ("1", "dam"), ("2", "ship"), ("3", "ship"), ("3", "dam"), ("4", "airport")]
    truth = pd.DataFrame(rows, columns=["image_id", "label"])
    pairs = example_pairs(truth, ["4", "3", "2", "1"], 3)
    assert pairs[0] == ("4", "airport")
    assert len({image for image, _ in pairs}) == 3
    assert len(example_pairs(truth, ["1", "2", "3", "4"], 99)) == 4
    assert example_pairs(truth.iloc[:0], ["1"], 3) == []


@pytest.mark.parametrize("photo", [False, True])
def test_the_title_becomes_the_caption_and_stays_in_the_file(tmp_path, monkeypatch, photo):
    shown = []
    monkeypatch.setattr(style, "display", lambda data, **options: shown.append((data, options["metadata"])))
    figure = maps.kinds_grid(IMAGE, {"standard": HEATMAP}, TRUTHS, FOUND, "ship", "It finds the ship.")
    style.show(figure, "Heatmap above, boxes below", tmp_path / "a.png", photo=photo)
    (data, metadata), (text, repeated) = shown
    (mime,) = data
    assert mime == ("image/jpeg" if photo else "image/png")
    caption = {"finding": "It finds the ship", "caption": "Heatmap above, boxes below."}
    assert metadata[mime] == {"alt": "It finds the ship. Heatmap above, boxes below.", **caption}
    assert repeated == {"repeats_caption": True}
    assert text.data == "**It finds the ship.** Heatmap above, boxes below."
    with Image.open(tmp_path / "a.png") as file, Image.open(io.BytesIO(data[mime])) as embedded:
        assert file.info["Title"] == "It finds the ship"
        assert file.info["Description"] == "Heatmap above, boxes below."
        assert embedded.height < file.height  # the line of the title is gone


def test_letters_of_any_script_draw_without_a_word(recwarn):
    row = {"label": "航拍", "kind": "standard", "ap": 0.5, "low": 0.4, "high": 0.6, "n_ground_truth": 3}
    fig = maps.class_bars(pd.DataFrame([row]), "ap", "图像 $x^2$", "AP")
    assert style.figure_bytes(fig, "png", "图像", title="图像").startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


def test_a_large_photograph_is_shrunk_before_it_is_drawn_and_keeps_its_coordinates():
    _, axes = style.new_figure(1, 1, size=(3, 3))
    style.photo_axis(axes[0, 0], np.zeros((1600, 2000, 3), np.uint8))
    (shown,) = axes[0, 0].get_images()
    assert max(shown.get_size()) < 1000
    assert shown.get_extent() == [0, 2000, 1600, 0]
