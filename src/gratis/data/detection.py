"""COCO's layout: ROOT/annotations/instances_train2017.json and the images in ROOT/train2017."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gratis.boxes import NO_BOX
from gratis.data.folder import UNREADABLE
from gratis.data.listing import MOST_SKIPPED
from gratis.data.scenes import Scenes, check_memory, fitted, letterboxed

FOLDERS = {"train": "train2017", "test": "val2017"}
REACHING = 1.0
"""A box that reaches further than so many pixels beyond its image is counted; COCO rounds."""


def load_coco(root: Path, split: str, image_size: int | None) -> Scenes:
    """The images and boxes of a split, "train" or "test" (val2017), each in a square of image_size.

    Classes are the categories in the order of their ids, which may have gaps. Crowds are judged
    against, not learned from. Images without a box stay, and teach that nothing is there. Damaged
    files end up in `Scenes.skipped`.

    Raises ValueError for what is missing, annotations that fit no image or category, an image of
    another size than annotated, too many damaged files, or more pixels than there is memory.
    """
    if image_size is None:
        raise ValueError(
            "data.image_size: detection needs the side of the squares that images are fitted "
            "into, in pixels: 320, say"
        )
    directory = root / FOLDERS[split]
    entries, boxes, classes = _annotated(root, split)
    lacking = [
        entry["file_name"] for entry in entries if not (directory / entry["file_name"]).is_file()
    ]
    if lacking:
        raise ValueError(
            f"{directory} lacks {len(lacking)} of the {len(entries)} images that the annotations "
            f"name, such as {lacking[0]}; get all of them"
        )
    check_memory(len(entries), image_size, str(directory))
    x, errors = _decoded(directory, entries, image_size)
    kept = [entry for entry in entries if entry["file_name"] not in errors]
    if errors:
        x = x[torch.tensor([entry["file_name"] not in errors for entry in entries])]
    counts: Counter[str] = Counter()
    truth = [_truth(entry, boxes.get(entry["id"], []), counts) for entry in kept]
    sizes = torch.tensor([(entry["height"], entry["width"]) for entry in kept])
    return Scenes(
        x=x,
        y=targets(truth, sizes, image_size),
        classes=classes,
        name=root.resolve().name,
        split=split,
        skipped=tuple(f"{directory.name}/{name}" for name in sorted(errors)),
        sizes=sizes,
        truth=tuple(truth),
        paths=tuple(directory / entry["file_name"] for entry in kept),
        clipped=counts["clipped"],
        degenerate=counts["degenerate"],
    )


def targets(truth: Sequence[Tensor], sizes: Tensor, size: int) -> Tensor:
    """What is learned, y [N, M, 5] in pixels of squares of `size`: no crowds, cut to the image.

    truth: of each image [n, 7], as in `Scenes`.  sizes: [N, 2] heights and widths.
    """
    rows = []
    for boxes, (height, width) in zip(truth, sizes.tolist(), strict=True):
        inner_height, inner_width = fitted(height, width, size)
        found = boxes[boxes[:, 6] == 0, :5].clone()
        found[:, 0:3:2] = found[:, 0:3:2].clamp(0, width) * (inner_width / width)
        found[:, 1:4:2] = found[:, 1:4:2].clamp(0, height) * (inner_height / height)
        rows.append(found.float())
    y = torch.zeros(len(rows), max(1, *map(len, rows)) if rows else 1, 5)
    y[..., 4] = NO_BOX
    for image, found in enumerate(rows):
        y[image, : len(found)] = found
    return y


def _annotated(
    root: Path, split: str
) -> tuple[list[dict[str, Any]], dict[Any, list[tuple[float, ...]]], tuple[str, ...]]:
    """(images as listed; boxes by image id: x1, y1, x2, y2, class, area, crowd; class names)."""
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
        known = json.loads(path.read_text("utf-8"))
        images, annotations, categories = (
            list(known[key]) for key in ("images", "annotations", "categories")
        )
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no COCO annotation file with images, annotations and categories: {error!r}"
        ) from error
    if not images or not categories:
        raise ValueError(f"{path} lists no {'categories' if images else 'images'}")
    categories.sort(key=lambda category: category["id"])
    index = {category["id"]: place for place, category in enumerate(categories)}
    boxes: dict[Any, list[tuple[float, ...]]] = {entry["id"]: [] for entry in images}
    for annotation in annotations:
        if annotation["image_id"] not in boxes:
            raise ValueError(
                f"{path}: annotation {annotation['id']} is of image {annotation['image_id']}, "
                "which the file does not list"
            )
        if annotation["category_id"] not in index:
            raise ValueError(
                f"{path}: annotation {annotation['id']} is of category "
                f"{annotation['category_id']}; the file has {', '.join(map(str, index))}"
            )
        boxes[annotation["image_id"]].append(_box(annotation, index))
    return images, boxes, tuple(str(category["name"]) for category in categories)


def _box(annotation: Mapping[str, Any], index: Mapping[Any, int]) -> tuple[float, ...]:
    left, top, width, height = annotation["bbox"]
    return (
        *(left, top, left + width, top + height),
        index[annotation["category_id"]],
        annotation.get("area", width * height),
        annotation.get("iscrowd", 0),
    )


def _truth(entry: Mapping[str, Any], boxes: Sequence[Any], counts: Counter[str]) -> Tensor:
    """An image's boxes [n, 7] as they are, less those with no area inside of it."""
    found = torch.tensor(boxes, dtype=torch.float64).view(-1, 7)
    limits = found.new_tensor([entry["width"], entry["height"]] * 2)
    inside = found[:, :4].clamp(min=0).minimum(limits)
    whole = (inside[:, 2:] > inside[:, :2]).all(1)
    counts["degenerate"] += int((~whole).sum())
    beyond = ((inside - found[:, :4]).abs() > REACHING).any(1)
    counts["clipped"] += int((beyond & whole).sum())
    return found[whole]


@dataclass
class _Errors:
    """Files that could not be read and why, and those of another size than annotated."""

    unreadable: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)


def _decoded(
    directory: Path, entries: Sequence[Mapping[str, Any]], size: int
) -> tuple[Tensor, dict[str, str]]:
    """(squares [N, 3, size, size], black where a file is damaged; the damaged ones and why)."""
    x = np.zeros((len(entries), 3, size, size), dtype=np.uint8)
    errors = _Errors()

    def decode(place: int) -> None:
        entry = entries[place]
        try:
            with Image.open(directory / entry["file_name"]) as image:
                if image.size != (entry["width"], entry["height"]):
                    errors.sizes[entry["file_name"]] = "{}x{}".format(*image.size)
                    return
                x[place] = letterboxed(image, size)
        except UNREADABLE as error:
            errors.unreadable[entry["file_name"]] = str(error)

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # Pillow lets go of the lock
        pool.map(decode, range(len(entries)), chunksize=16)
    if errors.sizes:
        name, found = min(errors.sizes.items())
        raise ValueError(
            f"{len(errors.sizes)} images in {directory} are not of the size that their boxes are "
            f"annotated for, such as {name}, which is {found}: they were resized, or turned"
        )
    if len(errors.unreadable) > MOST_SKIPPED * len(entries):
        name, why = min(errors.unreadable.items())
        raise ValueError(
            f"{len(errors.unreadable)} of {len(entries)} files in {directory} cannot be read as "
            f"images (up to {MOST_SKIPPED:.0%} are skipped): {name}: {why}"
        )
    return torch.from_numpy(x), errors.unreadable


# --- data that needs no file

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
SHAPES = {"train": 64, "test": 32}


def shapes(split: str, root: Path | None = None) -> Scenes:
    """64 images for training or 32 for the test, 64 pixels wide, with one to three rectangles.

    Their class is their colour, the ground is grey noise. The same ones every time: to try a
    detector without any file.
    """
    size, truth, images = 64, [], []
    for number in range(SHAPES[split]):
        draw = np.random.default_rng((number, split == "test"))
        image = Image.fromarray(draw.integers(90, 160, (size, size, 3), dtype=np.uint8))
        boxes = []
        for _ in range(draw.integers(1, 4)):
            width, height = draw.integers(12, 33, 2).tolist()
            left, top = draw.integers(0, size - width), draw.integers(0, size - height)
            label = int(draw.integers(0, len(COLOURS)))
            corners = (int(left), int(top), int(left) + width, int(top) + height)
            colour = list(COLOURS.values())[label]
            # Pillow's rectangle holds its last row and column
            edges = (*corners[:2], corners[2] - 1, corners[3] - 1)
            ImageDraw.Draw(image).rectangle(edges, fill=colour)
            boxes.append((*corners, label, width * height, 0))
        images.append(letterboxed(image, size))
        truth.append(torch.tensor(boxes, dtype=torch.float64))
    sizes = torch.full((len(images), 2), size)
    return Scenes(
        x=torch.from_numpy(np.stack(images)),
        y=targets(truth, sizes, size),
        classes=tuple(COLOURS),
        name="shapes",
        split=split,
        sizes=sizes,
        truth=tuple(truth),
    )
