"""Decoding and preprocessing an 800 x 800 JPEG for a model of 224 pixels, on one core, against Pillow and open_clip.

    python benchmarks/reading.py

Ours is `read_image` and `SurgeryCLIP.preprocess`; theirs is Pillow's decoder and open_clip's own transform (resize to
224 with bicubic antialiasing, crop, normalise). Printed too: the mean absolute difference of the tensors, and what it
does to the maps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import harness
import torch
from pictures import write_pictures
from PIL import Image

from surgerylib import DIOR_CLASSES, SurgeryCLIP, heatmaps, load_clip, prompt_names, read_image

PICTURES, MOST_DIFFERENCE = 16, 0.02


def rows() -> Iterator[harness.Row]:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    clip = load_clip("ViT-B-32", "random", device="cpu")
    from open_clip import get_model_preprocess_cfg, transform  # alone it cannot be imported everywhere, see imports.py

    config = transform.PreprocessCfg(**get_model_preprocess_cfg(clip.model))
    theirs = transform.image_transform_v2(config, is_train=False)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), PICTURES)
        print(f"{PICTURES} JPEGs, {sum(path.stat().st_size for path in paths) / len(paths) / 1e3:.0f} kB each")

        def ours() -> list[torch.Tensor]:
            return [clip.preprocess(read_image(path)) for path in paths]

        def pillow() -> list[torch.Tensor]:
            return [theirs(Image.open(path)) for path in paths]

        print(difference(clip, torch.stack(ours()), torch.stack(pillow())))
        name = f"decode and preprocess {PICTURES} JPEGs, one core"
        yield harness.compare(name, ours, "Pillow + open_clip's transform", pillow, rounds=9, limit=1 / 1.8)


@torch.no_grad()
def difference(clip: SurgeryCLIP, ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """A sentence on what the difference of the tensors is, and does to the maps of all classes."""
    mean = float((ours - theirs).abs().mean())
    assert mean <= MOST_DIFFERENCE, f"the tensors differ by {mean:.4f} in the mean, more than {MOST_DIFFERENCE}"
    text = clip.encode_text(prompt_names(DIOR_CLASSES))
    one, other = (heatmaps(clip.encode_image(images), text, "vv_mixed") for images in (ours, theirs))
    spread, off = other.std(dim=(2, 3)).mean(), (one - other).abs()
    return (
        f"the tensors differ by {mean:.4f} in the mean, the maps by {float(off.mean() / spread):.2%} of their standard "
        f"deviation in the mean, by {float(off.max() / spread):.1%} at most (random weights)"
    )


if __name__ == "__main__":
    harness.main(rows, __doc__)
