"""Images with boxes in place of one class, in memory, all fitted into squares of one size."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from gratis.boxes import NO_BOX
from gratis.data.decoding import plain
from gratis.data.images import Images

Pixels = npt.NDArray[np.uint8]

MOST_OF_MEMORY = 0.7
"""The share of the machine's memory that pixels may take; a run needs some for itself."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scenes(Images):
    """Images x [N, 3, S, S] uint8 and their boxes y [N, M, 5] float32, as gratis.boxes has them.

    Each image was scaled until its longer side is S; below or right of it x is black.
    sizes: [N, 2], height and width of the originals.  paths: their files; none where they are x.
    truth: for each image [n, 7] float64: x1, y1, x2, y2 in pixels of the original, class, area,
        and 1 for a crowd. Boxes are judged against it; crowds are not learned from.
    beyond, without_area: [N], how many boxes of each reached beyond it and were cut to it, and
        how many had no area inside of it and were left out; None for none.

    Raises ValueError where these do not hold.
    """

    sizes: Tensor
    truth: tuple[Tensor, ...]
    paths: tuple[Path, ...] = ()
    beyond: Tensor | None = None
    without_area: Tensor | None = None

    def __post_init__(self) -> None:
        where = f"{self.name} ({self.split})"
        if self.x.ndim != 4 or self.x.shape[1] != 3 or self.x.shape[2] != self.x.shape[3]:
            raise ValueError(f"{where}: x has shape {list(self.x.shape)}; [N, 3, S, S] is needed")
        if self.x.dtype != torch.uint8:
            raise ValueError(f"{where}: x is {self.x.dtype}; uint8 is needed")
        if self.y.ndim != 3 or self.y.shape[2] != 5 or len(self.y) != len(self.x):
            raise ValueError(
                f"{where}: y has shape {list(self.y.shape)} for {len(self.x)} images; [N, M, 5] is "
                "needed: x1, y1, x2, y2 and class of each box"
            )
        if len(self.truth) != len(self.x) or self.sizes.shape != (len(self.x), 2):
            raise ValueError(f"{where}: {len(self.x)} images need as many sizes and lists of boxes")
        labels = self.y[..., 4]
        if self.y.numel() and not bool(
            ((labels == NO_BOX) | ((labels >= 0) & (labels < len(self.classes)))).all()
        ):
            raise ValueError(f"{where}: classes of boxes must lie below {len(self.classes)}")

    @property
    def side(self) -> int:
        """S, in pixels."""
        return self.x.shape[2]

    def select(self, indices: Tensor) -> "Scenes":
        """The images at `indices` [M], in that order."""
        places = indices.tolist()
        chosen = indices.to(self.x.device)
        return replace(
            self,
            x=self.x[chosen],
            y=self.y[chosen],
            sizes=self.sizes[indices.cpu()],
            truth=tuple(self.truth[place] for place in places),
            paths=tuple(self.paths[place] for place in places) if self.paths else (),
            beyond=None if self.beyond is None else self.beyond[indices.cpu()],
            without_area=None if self.without_area is None else self.without_area[indices.cpu()],
        )

    @property
    def clipped(self) -> int:
        """How many boxes reached beyond their image and were cut to it."""
        return 0 if self.beyond is None else int(self.beyond.sum())

    @property
    def degenerate(self) -> int:
        """How many boxes have no area inside of their image and were left out."""
        return 0 if self.without_area is None else int(self.without_area.sum())

    def original(self, place: int) -> Pixels:
        """The image at `place` in its own size, [H, W, 3]."""
        if self.paths:
            with Image.open(self.paths[place]) as image:
                return np.asarray(plain(image, grey=False))
        height, width = self.fitted(place)
        kept: Pixels = self.x[place, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        return kept

    def fitted(self, place: int) -> tuple[int, int]:
        """Height and width of the image inside of its square."""
        height, width = self.sizes[place].tolist()
        return fitted(height, width, self.side)


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of an image scaled so that its longer side is `size`."""
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def letterboxed(image: Image.Image, size: int, original: tuple[int, int] | None = None) -> Pixels:
    """An image -> uint8 [3, size, size]: scaled (bilinear), at the top left, the rest black.

    original: (height, width) of the image that this one is a smaller copy of, whose shape counts.
    Its orientation is that of the stored pixels, which boxes refer to, whatever EXIF says.
    """
    height, width = fitted(*(original or (image.height, image.width)), size)
    scaled = plain(image, grey=False).resize((width, height), Image.Resampling.BILINEAR)
    square = np.zeros((3, size, size), dtype=np.uint8)
    square[:, :height, :width] = np.asarray(scaled).transpose(2, 0, 1)
    return square


def room() -> float:
    """Bytes of the machine's memory that images may take."""
    return MOST_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(count: int, size: int, where: str) -> None:
    """ValueError where `count` squares of `size` pixels do not fit into the machine's memory."""
    memory = room()
    needed = 3 * count * size**2
    if needed > memory:
        most = int((memory / (3 * count)) ** 0.5)
        raise ValueError(
            f"{where}: {count:,} images of {size} pixels need {needed / 2**30:.1f} GiB, and this "
            f"machine has {memory / 2**30:.1f} GiB for them; give data.image_size={most} or less"
        )
