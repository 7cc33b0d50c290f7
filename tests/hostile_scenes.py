"""Scenes that mean harm: damaged images, and names that no author of a dataset would give."""

from __future__ import annotations

from pathlib import Path

from dior_folders import annotation_dir, image_file, split_file

from surgerylib.embedded.scenes import write_scenes

HOSTILE_NAMES = ("<img src=x onerror=alert(1)>", "<script>alert(2)", "航拍图像")
DAMAGED = HOSTILE_NAMES[1]


def write_hostile(root: Path) -> Path:
    """Eight test images of which three have such names and two are cut short, `DAMAGED` one of them."""
    write_scenes(root, num_train=7, num_val=5, num_test=8, size=96)
    names = split_file(root, "test").read_text().split()
    for old, new in zip(names, HOSTILE_NAMES, strict=False):
        image_file(root, "test", old).rename(image_file(root, "test", new))
        (annotation_dir(root) / f"{old}.xml").rename(annotation_dir(root) / f"{new}.xml")
    split_file(root, "test").write_text("\n".join([*HOSTILE_NAMES, *names[3:]]), encoding="utf-8")
    for name in (DAMAGED, names[5]):
        path = image_file(root, "test", name)
        path.write_bytes(path.read_bytes()[:-300])
    return root
