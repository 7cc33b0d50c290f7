from __future__ import annotations

import numpy as np
import pandas as pd

from surgerylib.metrics import average_precision
from surgerylib.study.precision_recall import precision_recall

BOX = {"xmin": 0.0, "ymin": 0.0, "xmax": 10.0, "ymax": 10.0}
TRUTH = pd.DataFrame([{"image_id": image, "label": label, **BOX} for image, label in ["aX", "bX", "cX", "aY"]])


def detections(*rows: tuple[str, str, float]) -> pd.DataFrame:
    columns = ["image_id", "label", *BOX, "score"]
    return pd.DataFrame([(image, label, *BOX.values(), score) for image, label, score in rows], columns=columns)


def test_a_curve_by_hand():
    found = detections(("z", "X", 0.9), ("a", "X", 0.8), ("y", "X", 0.7), ("b", "X", 0.6), ("a", "Z", 0.9))
    frame = precision_recall(found, TRUTH, iou_threshold=0.5, classes=["X", "Y", "Z"])
    assert set(frame["label"]) == {"X"}  # Y has no true positive, Z no box
    np.testing.assert_allclose(frame["recall"], [1 / 3, 2 / 3])
    np.testing.assert_allclose(frame["precision"], [1 / 2, 2 / 4])
    np.testing.assert_allclose(frame["score"], [0.8, 0.6])


def test_nothing_found_and_nothing_to_find():
    assert precision_recall(detections(), TRUTH, iou_threshold=0.5).empty
    assert precision_recall(detections(("a", "X", 0.5)), TRUTH.iloc[:0], iou_threshold=0.5).empty


def test_the_area_under_the_envelope_is_the_average_precision():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame([{"image_id": f"{i}", "label": "X", **BOX} for i in range(300)])
    rows = [(f"{i}", "X", rng.random()) for i in rng.permutation(600)]
    found = detections(*rows)
    frame = precision_recall(found, truth, iou_threshold=0.5, most_points=1000)
    envelope = np.maximum.accumulate(frame["precision"].to_numpy()[::-1])[::-1]
    area = np.sum(np.diff(frame["recall"], prepend=0) * envelope)
    expected = average_precision(found, truth, iou_thresholds=[0.5], interpolation="area")["ap"].iloc[0]
    assert abs(area - expected) < 1e-12
    thinned = precision_recall(found, truth, iou_threshold=0.5, most_points=50)
    assert len(thinned) == 50
    assert thinned["recall"].iloc[-1] == frame["recall"].iloc[-1]
    assert thinned["recall"].iloc[0] == frame["recall"].iloc[0]
