from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from surgerylib.engine.evaluation import Evaluation, Figures
from surgerylib.heatmaps import Setting
from surgerylib.metrics import bootstrap_map
from surgerylib.study import recommendation as module
from surgerylib.study import sweep_tables
from surgerylib.study.settings import Criterion
from surgerylib.workbook.check import check_values
from surgerylib.workbook.parameters import find_notebooks, known_parameters, validate

MEANS = Criterion("all", None)
COLUMNS = ["image_id", "label", "xmin", "ymin", "xmax", "ymax"]
MEASURES = {
    "boxes_per_image": 3.0, "mean_iou": 0.2, "max_iou": 0.9, "mean_best_iou": 0.4, "activated_share": 0.25,
    "false_box_rate": 1.0, "boxes_per_absent_class": 2.0,
}  # fmt: skip


def fake_sweep(hits: dict[Setting, float], n_images: int = 60, seed: int = 0) -> Evaluation:
    """Settings that find a given share of the boxes, the easiest first, with false boxes of lower score."""
    rng = np.random.default_rng(seed)
    ease = rng.permutation(n_images) / n_images
    truth = pd.DataFrame(
        [(f"{i:03d}", label, 0.0, 0.0, 10.0, 10.0) for i in range(n_images) for label in ("ship", "dam")],
        columns=COLUMNS,
    )
    ids, figures = truth["image_id"].unique(), {}
    for setting, share in hits.items():
        found = truth.assign(score=np.repeat(ease, 2))
        found.loc[np.repeat(ease, 2) >= share, ["xmin", "xmax"]] += 50.0
        ap = bootstrap_map(found, truth, image_ids=ids, iou_thresholds=(0.1, 0.5), n_resamples=100).without_classes()
        figures |= {(setting, protocol): Figures(ap, MEASURES, np.zeros(2)) for protocol in ("present", "all")}
    settings = {setting: setting for setting in hits}
    return Evaluation(settings, figures, ("dam", "ship"), np.full(2, n_images), ids, "11point", {})


DEFAULT, BETTER, ALIKE = (Setting(percentile=percentile) for percentile in (75.0, 90.0, 92.0))


@pytest.fixture(scope="module")
def choice() -> Evaluation:
    return fake_sweep({DEFAULT: 0.3, BETTER: 0.8, ALIKE: 0.8, Setting(percentile=95.0): 0.5})


def recommend(choice: Evaluation, report: Evaluation, chosen: Setting = BETTER) -> module.Recommendation:
    return module.Recommendation(DEFAULT, chosen, chosen, MEANS, choice, report, "val", "test")


@pytest.fixture(scope="module")
def confirmed(choice) -> module.Recommendation:
    return recommend(choice, fake_sweep({DEFAULT: 0.3, BETTER: 0.7}, seed=1))


def test_the_sentence_says_what_was_chosen_from_how_many_and_what_the_other_split_says(choice, confirmed):
    assert choice.best("all") == BETTER
    text = confirmed.finding()
    assert "percentile 90" in text
    assert "best of 4 different settings on val (at least 1 other can't be told apart from it)" in text
    assert confirmed.notes() == []


@pytest.mark.parametrize(
    ("default", "better", "n_images", "said"),
    [
        (0.3, 0.7, 60, "which confirms it"),
        (0.8, 0.2, 60, "which contradicts it"),
        (0.5, 0.5, 60, "not told apart from the default"),
        (0.2, 0.9, 6, "on 6 images, too few to confirm or contradict it"),
    ],
)
def test_the_report_confirms_or_contradicts_the_choice(choice, default, better, n_images, said):
    report = fake_sweep({DEFAULT: default, BETTER: better}, n_images, seed=1)
    assert said in recommend(choice, report).finding()


def test_what_a_choice_needs_is_said(choice, confirmed):
    kept = recommend(choice, choice, DEFAULT).finding()
    assert kept.startswith("The default (vv_mixed, cosine, percentile 75)")
    empty = fake_sweep({DEFAULT: 0.0, BETTER: 0.0}, n_images=0)
    assert "nothing can be chosen" in recommend(empty, choice).finding()
    few = fake_sweep({DEFAULT: 0.2, BETTER: 0.9}, n_images=20)
    assert "Chosen on only 20 images (fewer than 50)" in recommend(few, few).notes()[0]
    at_the_end = replace(confirmed, plain=Setting(percentile=95.0))
    assert "95, is the highest tried" in at_the_end.notes()[0]


@pytest.mark.parametrize("chosen", [BETTER, replace(DEFAULT, kind="vv_vv")])
def test_of_equals_the_default_stays(chosen):
    """A setting with the same maps, or the same value, is no reason to change anything."""
    equal = fake_sweep({DEFAULT: 0.5, chosen: 0.5})
    kept = recommend(equal, equal, chosen)
    assert kept.is_default
    assert kept.chosen == DEFAULT
    assert kept.results([], {})["choice"]["default_stays"]


def test_the_answer_has_both_settings_their_difference_and_the_mean(confirmed):
    table = confirmed.answer_table()
    assert list(table.index) == ["mAP@0.10", "mAP@0.50", "mean mAP"]
    assert list(table.columns[3:]) == ["default (all)", "recommended (all)", "paired difference (all)"]
    value = confirmed.report.value(BETTER, "all")[0] - confirmed.report.value(DEFAULT, "all")[0]
    assert table.loc["mean mAP", "paired difference (all)"].startswith(f"{value:+.3f} [")
    same = recommend(confirmed.choice, confirmed.report, DEFAULT).answer_table()
    assert list(same.columns) == ["default (present)", "default (all)"]


def test_candidates_are_ranked_with_their_paired_differences(choice):
    table = sweep_tables.candidates_table(choice, MEANS, count=3)
    assert [text.split()[-1] for text in table["setting"]] == ["90", "92", "95"]
    assert table["difference to the best"].str[:3].tolist() == ["", "+0.", "−0."]


CHANGES = {
    "small": {"min_side": 10},
    "large": {"min_side": 20},
    "max": {"box_score": "max"},
    "nms": {"nms_iou": 0.3},
    "union": {"percentile": (75.0, 90.0), "nms_iou": 0.5},  # which brings its suppression along
    "no large ones": {"max_side": 20},  # contradicts "large"
}


@pytest.mark.parametrize(
    ("hits", "combined"),
    [
        ({"small": 0.6, "large": 0.8, "max": 0.7, "nms": 0.1}, [("small", "max"), ("large", "max")]),
        ({"max": 0.7, "nms": 0.1}, []),
        ({"union": 0.6, "max": 0.7}, [("union", "max")]),
        ({"no large ones": 0.6, "large": 0.7}, []),
    ],
)
def test_changes_that_help_are_combined_in_every_way(hits, combined):
    variants = {name: replace(BETTER, **CHANGES[name]) for name in hits}
    changed = fake_sweep({BETTER: 0.3} | {variants[name]: share for name, share in hits.items()})
    assert sweep_tables.combinations(changed, BETTER, variants, MEANS) == {
        f"{one}, {other}": replace(BETTER, **CHANGES[one] | CHANGES[other]) for one, other in combined
    }


def test_changes_are_told_beside_the_plain_steps():
    variants = {name: replace(BETTER, **CHANGES[name]) for name in ("small", "large", "max", "nms")}
    changed = fake_sweep(dict(zip([BETTER, *variants.values()], [0.3, 0.6, 0.8, 0.7, 0.1], strict=True)))
    assert sweep_tables.best_of(variants, changed, MEANS) == "large"
    table = sweep_tables.changes_table(changed, BETTER, variants, MEANS)
    assert table["name"].tolist() == ["plain five steps", *variants]
    assert sweep_tables.changes_title(table) == "3 of 4 changes help, 1 harm, 0 make no clear difference"


@pytest.mark.parametrize(
    ("rate", "said"),
    [(0.1234, "Absent classes with a box on test: 12.3 %; under the default 100.0 %."), (np.nan, "")],
)
def test_absent_classes_with_a_box_are_told_beside_the_defaults(choice, confirmed, rate, said):
    own = replace(confirmed.report.figures[BETTER, "all"], measures={**MEASURES, "false_box_rate": rate})
    report = replace(confirmed.report, figures={**confirmed.report.figures, (BETTER, "all"): own})
    assert replace(confirmed, report=report).false_boxes() == said
    assert recommend(choice, choice, DEFAULT).false_boxes() == "Absent classes with a box on test: 100.0 %."


def test_curves_hold_plain_percentiles_of_one_map_under_both_protocols(choice):
    frame = sweep_tables.curves(choice, BETTER, MEANS)
    assert len(frame) == 2 * 4
    assert frame["percentile"].is_monotonic_increasing
    assert sweep_tables.curve_titles(frame)["all"].endswith("best vv_mixed at 90")
    assert sweep_tables.marks(DEFAULT, BETTER) == {"default": (75.0, "vv_mixed"), "best": (90.0, "vv_mixed")}
    assert list(sweep_tables.marks(replace(DEFAULT, similarity="surgery"), BETTER)) == ["best"]
    table = sweep_tables.map_by_percentile(choice, BETTER, "all")
    assert "percentile 90 is best at 2 of 2 IoU" in sweep_tables.grid_titles({"all": table}, BETTER)["all"]
    assert table.index.tolist() == [75.0, 90.0, 92.0, 95.0]
    assert table.loc[90.0, 0.1] == choice.value(BETTER, "all", 0.1)[0]
    assert len(sweep_tables.percentile_table(choice, BETTER)) == 4


@pytest.mark.parametrize("floor", [None, -0.1, 1 / 3, 1e-30])
def test_recommended_yaml_is_taken_by_the_workbook(confirmed, floor):
    chosen = Setting(percentile=(75.0, 90.0), nms_iou=0.5, min_side=9, max_side=99, box_score="max", floor=floor)
    report = fake_sweep({DEFAULT: 0.3, chosen: 0.7})
    parameters = {"dataset": "data/DIOR", "split": "test", "choose_split": "val", "model": "ViT-B-32",
                  "checkpoint": "openai", "image_size": None, "depth": 6}  # fmt: skip
    own = replace(confirmed, chosen=chosen, choice=report.joined(confirmed.choice), report=report)
    text = own.as_yaml(parameters)
    values = yaml.safe_load(text)
    assert values == {**parameters, **chosen.parameters()}
    known = known_parameters(find_notebooks())
    settings = {name: parameter.default for name, parameter in known.items()} | validate(values, known)
    check_values(settings)
    assert settings["percentile"] == [75.0, 90.0]
    assert settings["floor"] == floor
    assert "best of 5 different settings on val" in text.splitlines()[1]


def test_the_file_of_results_is_plain_json(confirmed):
    again = json.loads(json.dumps(confirmed.results(["a note"], {"seed": 0}), allow_nan=False))
    assert again["choice"]["n_distinct_settings"] == 4
    assert again["report"]["recommended"]["parameters"]["percentile"] == 90
    assert [entry["iou_threshold"] for entry in again["report"]["difference"]["all"]] == [0.1, 0.5, None]
    at_90 = again["choice"]["by_percentile"]["all"]["vv_mixed"]["90"]
    assert at_90["0.1"] == confirmed.choice.value(BETTER, "all", 0.1)[0]
    frame = confirmed.frame()
    assert frame.groupby("role")["setting"].nunique().to_dict() == {"choice": 4, "report": 2}
