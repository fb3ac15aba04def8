"""Random crops and flips of a whole batch at once, each image its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_FORMS = "crop-N (pad N black pixels a side, then crop at random; crop-4 for CIFAR) and flip"


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image, drawn apart from being applied: draws can be repeated.

    pad: black pixels added to each side before a crop of the old size; 0 for no crop.
    flip: mirror half of the images left to right.
    """

    pad: int = 0
    flip: bool = False

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
    pad, flip = 0, False
    for name in names:
        crop = re.fullmatch(r"crop-([1-9]\d*)", name)
        if name == "flip" and not flip:
            flip = True
        elif crop and not pad:
            pad = int(crop[1])
        elif name == "flip" or crop:
            raise ValueError(f"augment is {list(names)}; one crop and one flip at most make sense")
        else:
            raise ValueError(f"there is no augmentation {name!r}; there are {_FORMS}")
    return Augmentation(pad, flip)
