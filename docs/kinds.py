"""Draw docs/kinds.png, the README's figure: `.venv/bin/python docs/kinds.py [IMAGE_ID CLASS]` after `make report`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from surgerylib import HEATMAP_KINDS, heatmaps, load_clip, load_dataset, read_image
from surgerylib.figures import figure_bytes
from surgerylib.figures import maps as plots
from surgerylib.files import PROJECT_ROOT

image_id, label = sys.argv[1:3] if len(sys.argv) > 2 else ("00392", "airplane")
data = load_dataset(PROJECT_ROOT / "data" / "scenes", "test")
image = read_image(data.images.set_index("image_id").loc[image_id, "path"])
clip = load_clip("embedded", device="cpu")
tokens, text = clip.encode_image(clip.preprocess(image)[None]), clip.encode_text(data.classes)
detections = pd.read_parquet(PROJECT_ROOT / "reports" / "embedded" / "detections.parquet")
truth, found = (frame[frame["image_id"] == image_id] for frame in (data.boxes, detections))
own_maps = {kind: heatmaps(tokens, text, kind)[0, data.classes.index(label)].numpy() for kind in HEATMAP_KINDS}
title = f"Where is the {label}? Above: the heatmap. Below: annotation (green), boxes at percentile 75 (red)"
figure = plots.kinds_grid(image, own_maps, truth, found, label, title)
Path(__file__).with_name("kinds.png").write_bytes(figure_bytes(figure, "png"))
