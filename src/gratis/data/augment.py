"""Random crops and flips of a whole batch at once, each image its own."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FORMS = (
    "crop-N (pad N black pixels a side, then crop at random; crop-4 for CIFAR), resized-crop (of "
    "images of a folder with data.stored) and flip"
)
AREAS = (0.08, 1.0)
RATIOS = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image, drawn apart from being applied: draws can be repeated.

    pad: black pixels added to each side before a crop of the old size; 0 for no crop.
    flip: mirror half of the images left to right.
    resized: cut a part of random size and shape out of each image (`random_box`), in a loader
    that makes images the size it needs.
    """

    pad: int = 0
    flip: bool = False
    resized: bool = False

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(corners [count, 2] of the crops in the padded images: row, column; flips [count])."""
        corners = torch.randint(0, 2 * self.pad + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        return corners, flips if self.flip else torch.zeros_like(flips)

    def apply(self, x: Tensor, corners: Tensor, flips: Tensor) -> Tensor:
        """x [B, C, H, W], uint8 or float -> the same shape and dtype, cropped and flipped.

        corners [B, 2] int64, flips [B] bool: as `draw` gives them, on the device of x.
        """
        if not self.pad and not self.flip:
            return x
        b, c, h, w = x.shape
        rows = torch.arange(h, device=x.device) + corners[:, :1]  # [B, H]
        columns = torch.arange(w, device=x.device)
        columns = torch.where(flips[:, None], w - 1 - columns, columns) + corners[:, 1:]  # [B, W]
        # One gather over flattened pixels: about twice as fast on a CPU as indexing by row and
        # column, and no loop over images.
        sources = rows[:, :, None] * (w + 2 * self.pad) + columns[:, None, :]
        sources = sources.view(b, 1, h * w).expand(b, c, h * w)
        padded = F.pad(x, (self.pad,) * 4)
        return padded.flatten(2).gather(2, sources).view(b, c, h, w)


def parse_augment(names: Sequence[str]) -> Augmentation:
    """`["crop-4", "flip"]` -> what it says. ValueError for another name or one given twice."""
    if isinstance(names, str):
        raise ValueError(f"augment is {names!r}; a list is needed: [{names}]")
    pad, flip, resized = 0, False, False
    for name in names:
        crop = re.fullmatch(r"crop-([1-9]\d*)", name)
        if name == "flip" and not flip:
            flip = True
        elif crop and not (pad or resized):
            pad = int(crop[1])
        elif name == "resized-crop" and not (pad or resized):
            resized = True
        elif name in ("flip", "resized-crop") or crop:
            raise ValueError(f"augment is {list(names)}; one crop and one flip at most make sense")
        else:
            raise ValueError(f"there is no augmentation {name!r}; there are {_FORMS}")
    return Augmentation(pad, flip, resized)


def random_box(width: int, height: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a part of an image of width x height pixels.

    Its share of the area is uniform in AREAS, the logarithm of its shape (width : height) in
    that of RATIOS; where TRIES such parts in a row are wider or higher than the image, the
    largest one in its centre whose shape lies within RATIOS (Szegedy 2015, section 6, as
    torchvision's RandomResizedCrop has it).
    """
    low, high = (math.log(ratio) for ratio in RATIOS)
    for _ in range(TRIES):
        area = width * height * draw.uniform(*AREAS)
        ratio = math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(draw.integers(width - w + 1))
            top = int(draw.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * RATIOS[1]))
    h = min(height, round(width / RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
