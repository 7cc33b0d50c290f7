"""What the embedded model is trained on: a pool of rendered scenes, and crops of them with the classes they show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ..words import DIOR_CLASSES
from .scenes import render_scene, scene_rng

IMAGE_SIZE = 224
AIMED, ERASED, PASTED = 0.8, 0.3, 0.3  # shares of the crops that are aimed at an object; made without; with another
PRESENT, ABSENT = 0.5, 0.15  # visible share of an object: above, its class is in the crop; below, it is not


@dataclass(frozen=True)
class ScenePool:
    """images: uint8 [S, 224, 224, 3]; boxes_xyxy: float32 [S, K, 4] pixels; labels: int64 [S, K], -1 where unused."""

    images: Tensor
    boxes_xyxy: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def boxes_of(self) -> list[Tensor]:
        """For each class with boxes, their places: int64 [N, 2] of (scene, box)."""
        places = [(self.labels == label).nonzero() for label in range(len(DIOR_CLASSES))]
        return [rows for rows in places if len(rows)]


def _render(index: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    scene = render_scene(scene_rng(seed, "pretrain", index))
    factor = IMAGE_SIZE / len(scene.image)
    small = cv2.resize(scene.image, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    return small, scene.boxes_xyxy * factor, [DIOR_CLASSES.index(label) for label in scene.labels]


def render_pool(count: int, *, seed: int, workers: int = 2) -> ScenePool:
    """Render scenes to train on, brought to 224 pixels; the order and the pixels do not depend on `workers`."""
    images = torch.empty(count, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    boxes, labels = [], []
    drawn = Parallel(workers, return_as="generator")(delayed(_render)(index, seed) for index in range(count))
    drawn = tqdm(drawn, total=count, desc="rendering scenes", unit="scene", delay=2, leave=False)
    for i, (image, scene_boxes, scene_labels) in enumerate(drawn):
        images[i] = torch.from_numpy(image)
        boxes.append(torch.tensor(scene_boxes, dtype=torch.float32).view(-1, 4))
        labels.append(torch.tensor(scene_labels, dtype=torch.int64))
    padded = pad_sequence(labels, batch_first=True, padding_value=-1)
    return ScenePool(images, pad_sequence(boxes, batch_first=True), padded)


def sample_crops(pool: ScenePool, batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops with flips and quarter turns; most are aimed at an object, every class as often as any other.

    In some the object is then painted over with what lies beside it, and in some an object of another scene is
    pasted in. Else the model learns that water is a ship and an apron an airplane, and the maps show just that.

    Returns:
        images: uint8 [B, size, size, 3].
        truth: [B, C], 1 where the class is in the crop, 0 where it is not, NaN where it is hard to say.
    """
    truth = np.full((batch, len(DIOR_CLASSES)), np.nan, np.float32)
    crops = np.empty((batch, size, size, 3), np.uint8)
    for i, draw in enumerate(torch.rand(batch, 16, generator=generator).numpy()):
        scene, target, corner = _aim(pool, size, draw[:6])
        image, boxes, labels = pool.images[scene].numpy(), pool.boxes_xyxy[scene].numpy(), pool.labels[scene].numpy()
        seen = _overlap(boxes, np.concatenate([corner, corner + size]))
        if target >= 0 and draw[6] < ERASED:
            image, gone = _erase(image, boxes, labels, labels[target], draw[7])
            seen = np.where(gone, 0, seen)
        x, y = corner
        crop = image[y : y + size, x : x + size]
        if pool.boxes_of and draw[8] < PASTED:
            crop, covered, added = _paste(pool, crop, draw[9:14])
            seen = seen - _overlap(boxes - np.tile(corner, 2), covered) * (seen > 0)
            boxes, labels, seen = (np.concatenate(pair) for pair in zip((boxes, labels, seen), added, strict=True))
        truth[i] = _truth(boxes, labels, seen, size * size)
        # the truth knows no direction, so it needs no turning
        crop = np.rot90(crop, int(draw[14] * 4))
        crops[i] = crop[::-1] if draw[15] < 0.5 else crop
    return torch.from_numpy(crops), torch.from_numpy(truth)


def _aim(pool: ScenePool, size: int, draw: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Scene, box aimed at (-1 for none) and upper left corner of a crop."""
    if not pool.boxes_of or draw[0] >= AIMED:
        return int(draw[1] * len(pool)), -1, (draw[2:4] * (IMAGE_SIZE - size + 1)).astype(int)
    scene, box = _some_box(pool, draw[1], draw[2])
    low, high = pool.boxes_xyxy[scene, box].numpy().reshape(2, 2)
    corner = low + (high - low) * (0.3 + 0.4 * draw[3]) - size * (0.15 + 0.7 * draw[4:6])
    return scene, box, corner.astype(int).clip(0, IMAGE_SIZE - size)


def _some_box(pool: ScenePool, which: float, row: float) -> tuple[int, int]:
    """Scene and box; first the class is drawn, then one of its boxes."""
    places = pool.boxes_of[int(which * len(pool.boxes_of))]
    scene, box = places[int(row * len(places))].tolist()
    return scene, box


def _overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Area that each of the boxes [K, 4] shares with one other [4]."""
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    return sides.clip(0).prod(1)


def _erase(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, label: int, turn: float):
    """Paint every box of a class over with the ground beside it; all of them or none. Returns image and [K] bool."""
    painted, gone = image.copy(), labels == label
    for x0, y0, x1, y1 in np.rint(boxes[gone] + np.array([-1, -1, 1, 1])).astype(int):
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, IMAGE_SIZE), min(y1, IMAGE_SIZE)
        shifts = np.array([(x1 - x0, 0), (0, y1 - y0), (x0 - x1, 0), (0, y0 - y1)])
        for dx, dy in np.roll(shifts, int(turn * 4), 0):
            source = np.array([x0 + dx, y0 + dy, x1 + dx, y1 + dy])
            if source.min() >= 0 and source.max() <= IMAGE_SIZE and not _overlap(boxes, source).any():
                painted[y0:y1, x0:x1] = image[source[1] : source[3], source[0] : source[2]]
                break
        else:
            return image, np.zeros(len(labels), bool)
    return painted, gone


def _paste(pool: ScenePool, crop: np.ndarray, draw: np.ndarray):
    """Paste an object with its box into a crop. Returns the crop, what it covers, and what it adds."""
    scene, box = _some_box(pool, draw[0], draw[1])
    boxes, labels = pool.boxes_xyxy[scene].numpy(), pool.labels[scene].numpy()
    x0, y0, x1, y1 = source = np.rint(boxes[box]).astype(int)
    room = len(crop) - np.array([x1 - x0, y1 - y0])
    if room.min() < len(crop) // 4 or min(x1 - x0, y1 - y0) < 1:  # it would leave little of the crop
        return crop, np.zeros(4), (boxes[:0], labels[:0], boxes[:0, 0])
    x, y = (draw[2:4] * (room + 1)).astype(int)
    crop = crop.copy()
    crop[y : y + y1 - y0, x : x + x1 - x0] = pool.images[scene].numpy()[y0:y1, x0:x1]
    return crop, np.array([x, y, x + x1 - x0, y + y1 - y0]), (boxes, labels, _overlap(boxes, source))


def _truth(boxes: np.ndarray, labels: np.ndarray, seen: np.ndarray, crop_area: int) -> np.ndarray:
    """[C] of 1, 0 and NaN, from the area in px² that is seen of each box."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).clip(1)
    # a large object shows well enough through a part that fills a good share of the crop
    share = np.maximum(seen / area, 2 * seen / crop_area)
    best = np.zeros(len(DIOR_CLASSES))
    np.maximum.at(best, labels[labels >= 0], share[labels >= 0])
    return np.where(best >= PRESENT, 1.0, np.where(best <= ABSENT, 0.0, np.nan))
