"""The images of a data set as one leafs through them: next, previous, those of a class, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..datasets import Dataset, read_image
from ..errors import ParameterError
from .view_model import Subject


class Album:
    """A place among the images of a split, `dataset`."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._order = np.arange(len(dataset.images))
        self._place = 0

    @property
    def n_images(self) -> dict[str, int]:
        """Class -> images that hold it."""
        holding = self.dataset.boxes.groupby("label")["image_id"].nunique()
        return holding.reindex(list(self.dataset.classes), fill_value=0).to_dict()

    @property
    def image_id(self) -> str:
        """Of the image at this place."""
        return self.dataset.images["image_id"].iloc[self._order[self._place]]

    @property
    def position(self) -> str:
        """`3 of 17: 00324`."""
        return f"{self._place + 1:,} of {len(self._order):,}: {self.image_id}"

    def take(self, label: str | None) -> None:
        """Only the images that hold a class, or all; the first of them."""
        images, boxes = self.dataset.images["image_id"], self.dataset.boxes
        holding = images if label is None else boxes.loc[boxes["label"] == label, "image_id"]
        self._order, self._place = np.flatnonzero(images.isin(holding)), 0

    def step(self, by: int) -> None:
        """So many images on; behind the last comes the first."""
        self._place = (self._place + by) % len(self._order)

    def find(self, name: str) -> None:
        """Among all images the one of this name, with or without its ending, or the first whose name holds it."""
        names = self.dataset.images["image_id"]
        for found in (names == name, names == Path(name).stem, names.str.contains(name, case=False, regex=False)):
            if found.any():
                self._order, self._place = np.arange(len(names)), int(np.argmax(found))
                return
        raise ParameterError(
            f"no image {name!r} in split {self.dataset.split} of {self.dataset.name}, which holds {names.iloc[0]} to "
            f"{names.iloc[-1]}; type a name, or a part of one"
        )

    def subject(self, image_id: str) -> Subject:
        """An image, read from its file, with its ground truth."""
        images, boxes = self.dataset.images, self.dataset.boxes
        path = images.loc[images["image_id"] == image_id, "path"].iloc[0]
        truth = boxes[boxes["image_id"] == image_id].drop(columns="image_id").reset_index(drop=True)
        return Subject(image_id, path, read_image(path), truth)
