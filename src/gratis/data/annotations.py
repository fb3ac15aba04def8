"""COCO's layout: ROOT/annotations/instances_train2017.json and the images in ROOT/train2017."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gratis.data.listing import Listing

FOLDERS = {"train": "train2017", "test": "val2017"}
REACHING = 1.0
"""A box that reaches further than so many pixels beyond its image is counted; COCO rounds."""

Parsed = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Annotated(Listing):
    """The images of a split in the order of the annotations, and the boxes in each.

    sizes: [N, 2], height and width.  truth: of each image [n, 7] float64: x1, y1, x2, y2 in its
    pixels, class, area, and 1 for a crowd.  clipped, degenerate: [N], how many of its boxes
    reach beyond it, and how many had no area inside of it and are not in `truth`.
    most: the largest number of boxes in an image that are no crowds.
    """

    sizes: Tensor
    truth: tuple[Tensor, ...]
    clipped: Tensor
    degenerate: Tensor
    most: int

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files' names and sizes in bytes and the images' sizes in pixels; not
        over boxes, of which decoded pixels do not depend.
        """
        digest = hashlib.sha256(super().fingerprint.encode())
        digest.update(self.sizes.numpy().data)
        return digest.hexdigest()

    def check_size(self, place: int, size: tuple[int, int]) -> None:
        """ValueError where the image at `place` is not as annotated: (width, height)."""
        height, width = self.sizes[place].tolist()
        if size != (width, height):
            raise ValueError(
                f"images in {self.directory} are not of the size that their boxes are annotated "
                f"for, such as {self.paths[place].name}, which is {size[0]}x{size[1]}: they were "
                "resized, or turned"
            )


NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
"""What is read of each entry, and has no other value to stand for it."""


def annotated(root: Path, split: str) -> Annotated:
    """What the annotations of a split, "train" or "test" (val2017), say.

    Classes are the categories in the order of their ids, which may have gaps. No image is opened.

    Raises ValueError for what is missing, or annotations that fit no image or category.
    """
    directory = root / FOLDERS[split]
    path, known = _parsed(root, split)
    entries, categories = known["images"], known["categories"]
    categories.sort(key=lambda category: category["id"])
    lacking = [
        entry["file_name"] for entry in entries if not (directory / entry["file_name"]).is_file()
    ]
    rows = _rows(path, known)
    if lacking:
        raise ValueError(
            f"{directory} lacks {len(lacking)} of the {len(entries)} images that the annotations "
            f"name, such as {lacking[0]}; get all of them"
        )
    sizes = torch.tensor([(entry["height"], entry["width"]) for entry in entries])
    order = rows[:, 0].sort(stable=True).indices
    image, boxes = rows[order, 0].long(), rows[order, 1:]
    inside = boxes[:, :4].clamp(min=0).minimum(sizes[image].flip(1).repeat(1, 2))
    whole = (inside[:, 2:] > inside[:, :2]).all(1)
    beyond = ((inside - boxes[:, :4]).abs() > REACHING).any(1) & whole

    def counted(which: Tensor) -> Tensor:
        return image[which].bincount(minlength=len(entries))

    return Annotated(
        root=root,
        split=split,
        directory=directory,
        classes=tuple(str(category["name"]) for category in categories),
        paths=tuple(directory / entry["file_name"] for entry in entries),
        sizes=sizes,
        truth=torch.split_with_sizes(boxes[whole], counted(whole).tolist()),
        clipped=counted(beyond),
        degenerate=counted(~whole),
        most=int(counted(whole & (boxes[:, 6] == 0)).max()),
    )


def _parsed(root: Path, split: str) -> tuple[Path, Parsed]:
    """(the annotations' file; its images, annotations and categories)."""
    path = root / "annotations" / f"instances_{FOLDERS[split]}.json"
    if not path.is_file() or not (root / FOLDERS[split]).is_dir():
        judged = (
            "; to judge on the training images themselves, an overfit check: data.test_split=train"
            if split == "test"
            else ""
        )
        raise ValueError(
            f"{root} has no {split} split; needed are {path.relative_to(root)} and the images in "
            f"{FOLDERS[split]}/{judged}"
        )
    try:
        found = json.loads(path.read_text("utf-8"), object_hook=_without_outline)
        known = {key: list(found[key]) for key in ("images", "annotations", "categories")}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no COCO annotation file with images, annotations and categories: {error!r}"
        ) from error
    for kind, keys in NEEDED.items():
        _check_entries(path, kind, known[kind], keys)
    if not known["images"] or not known["categories"]:
        raise ValueError(f"{path} lists no {'categories' if known['images'] else 'images'}")
    return path, known


def _check_entries(path: Path, kind: str, entries: list[Any], keys: tuple[str, ...]) -> None:
    """ValueError for an entry that lacks what is read of it."""
    for number, entry in enumerate(entries):
        lacking = [key for key in keys if not isinstance(entry, dict) or entry.get(key) is None]
        if not lacking and kind == "annotations" and len(entry["bbox"]) != 4:
            lacking = [f"bbox of four numbers, but {entry['bbox']}"]
        if lacking:
            raise ValueError(
                f"{path}: number {number} of its {kind} has no {', '.join(lacking)}; each needs "
                f"{', '.join(keys)}"
            )


def _without_outline(found: Parsed) -> Parsed:
    """Outlines take ten times the memory of all else, and are not looked at."""
    found.pop("segmentation", None)
    return found


def _rows(path: Path, known: Parsed) -> Tensor:
    """All boxes [A, 8]: which image, x1, y1, x2, y2, which class, area, crowd."""
    place = {entry["id"]: number for number, entry in enumerate(known["images"])}
    index = {category["id"]: number for number, category in enumerate(known["categories"])}
    rows = []
    for annotation in known["annotations"]:
        if annotation["image_id"] not in place:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} is of image {annotation['image_id']}, "
                "which the file does not list"
            )
        if annotation["category_id"] not in index:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} is of category "
                f"{annotation['category_id']}; the file has {', '.join(map(str, index))}"
            )
        label = index[annotation["category_id"]]
        rows.append((place[annotation["image_id"]], *_box(annotation, label)))
    return torch.tensor(rows, dtype=torch.float64).view(-1, 8)


def _box(annotation: Mapping[str, Any], label: int) -> tuple[float, ...]:
    left, top, width, height = annotation["bbox"]
    return (
        *(left, top, left + width, top + height),
        label,
        width * height if (area := annotation.get("area")) is None else area,
        annotation.get("iscrowd") or 0,
    )
