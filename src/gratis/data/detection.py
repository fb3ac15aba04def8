"""Images and boxes in COCO's layout in memory; what is learned of boxes; data without any file."""

import os
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gratis.boxes import NO_BOX
from gratis.data.annotations import Annotated, annotated
from gratis.data.scenes import Scenes, check_memory, fitted, letterboxed
from gratis.data.store import decoded


def load_coco(root: Path, split: str, image_size: int | None) -> Scenes:
    """The images and boxes of a split, "train" or "test" (val2017), each in a square of image_size.

    Crowds are judged against, not learned from. Images without a box stay, and teach that nothing
    is there. Damaged files end up in `Scenes.skipped`.

    Raises ValueError for what `annotated` refuses, an image of another size than annotated, too
    many damaged files, or more pixels than there is memory.
    """
    if image_size is None:
        raise ValueError(
            "data.image_size: detection needs the side of the squares that images are fitted "
            "into, in pixels: 320, say"
        )
    listing = annotated(root, split)
    check_memory(len(listing), image_size, str(listing.directory))
    return in_memory(listing, torch.arange(len(listing)), image_size)


def in_memory(listing: Annotated, rows: Tensor, size: int) -> Scenes:
    """The images at `rows` [M], in squares of `size`; errors as `load_coco`."""
    x = np.zeros((len(rows), 3, size, size), dtype=np.uint8)
    errors: dict[Path, str] = {}

    def decode(place: int) -> None:
        row = int(rows[place])
        found = decoded(listing, row, partial(letterboxed, size=size))
        if isinstance(found, str):
            errors[listing.paths[row]] = found
        else:
            x[place] = found

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # Pillow lets go of the lock
        pool.map(decode, range(len(rows)), chunksize=16)
    listing.check_skipped(errors)
    readable = torch.tensor([listing.paths[row] not in errors for row in rows.tolist()]).bool()
    kept, chosen = rows[readable], rows[readable].tolist()
    truth, sizes = [listing.truth[row] for row in chosen], listing.sizes[kept]
    return Scenes(
        x=torch.from_numpy(x) if not errors else torch.from_numpy(x)[readable],
        y=targets(truth, sizes, size),
        classes=listing.classes,
        name=listing.name,
        split=listing.split,
        skipped=listing.skipped(errors),
        sizes=sizes,
        truth=tuple(truth),
        paths=tuple(listing.paths[row] for row in chosen),
        beyond=listing.clipped[kept],
        without_area=listing.degenerate[kept],
    )


def targets(truth: Sequence[Tensor], sizes: Tensor, size: int, most: int = 1) -> Tensor:
    """What is learned, y [N, M, 5] in pixels of squares of `size`: no crowds, cut to the image.

    truth: of each image [n, 7], as in `Scenes`.  sizes: [N, 2] heights and widths.  most: the
    least that M may be.
    """
    rows = []
    for boxes, (height, width) in zip(truth, sizes.tolist(), strict=True):
        inner_height, inner_width = fitted(height, width, size)
        found = boxes[boxes[:, 6] == 0, :5].clone()
        found[:, 0:3:2] = found[:, 0:3:2].clamp(0, width) * (inner_width / width)
        found[:, 1:4:2] = found[:, 1:4:2].clamp(0, height) * (inner_height / height)
        rows.append(found.float())
    y = torch.zeros(len(rows), max(most, *map(len, rows)) if rows else most, 5)
    y[..., 4] = NO_BOX
    for image, found in enumerate(rows):
        y[image, : len(found)] = found
    return y


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
