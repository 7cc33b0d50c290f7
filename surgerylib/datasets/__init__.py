"""Detection datasets on disk: their layouts, annotations, images, and what becomes of damaged ones.

Every image that leaves this room is uint8 RGB [H, W, 3] with the pixels as stored (no EXIF rotation); every box is
float xyxy in pixels of that image, width = xmax - xmin.
"""

from .damage import check_images, check_on_bad_image, files_sha256, sound
from .dataset import Dataset, check_disjoint, check_have_boxes, flattered_by
from .images import decode_image, read_image
from .loading import dataset_splits, load_dataset
from .voc import Annotation, read_annotation

__all__ = [
    "Annotation",
    "Dataset",
    "check_disjoint",
    "check_have_boxes",
    "check_images",
    "check_on_bad_image",
    "dataset_splits",
    "decode_image",
    "files_sha256",
    "flattered_by",
    "load_dataset",
    "read_annotation",
    "read_image",
    "sound",
]
