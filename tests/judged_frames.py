"""An `Evaluation` out of frames of boxes, for tests of what is made of one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from surgerylib.engine.evaluation import Evaluation, Figures
from surgerylib.heatmaps import HEATMAP_KINDS, Setting
from surgerylib.metrics import bootstrap_map
from surgerylib.study.summary import present_only
from surgerylib.words import PROTOCOLS


def judged(found: pd.DataFrame, truth: pd.DataFrame, *, image_ids, classes, kinds=HEATMAP_KINDS, **options):
    """Each kind's boxes under both protocols."""
    figures = {}
    for kind in kinds:
        own = found[found["kind"] == kind]
        for protocol in PROTOCOLS:
            asked = present_only(own, truth) if protocol == "present" else own
            counts = asked["label"].value_counts().reindex(list(classes), fill_value=0).to_numpy()
            ap = bootstrap_map(asked, truth, image_ids=image_ids, classes=classes, **options)
            figures[kind, protocol] = Figures(ap, {}, counts)
    settings = {kind: Setting(kind) if kind in HEATMAP_KINDS else Setting() for kind in kinds}
    n_truth = truth["label"].value_counts().reindex(list(classes), fill_value=0).to_numpy()
    how = options.get("interpolation", "11point")
    return Evaluation(settings, figures, tuple(classes), n_truth, np.array(image_ids), how, {})
