"""The images of a shift, one corruption at one severity at a time, read batch by batch."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from gratis.data.corruptions import each_corrupted
from gratis.data.decoding import UNREADABLE, cropped, plain
from gratis.data.images import Images
from gratis.data.listing import MOST_SKIPPED

Item = TypeVar("Item")
Made = TypeVar("Made")
PIECES = 16
"""Images of a batch that one process corrupts at a time."""


class Batch(NamedTuple):
    """x: float32 [B, C, H, W] in [0, 1].  y: int64 [B], classes of the run."""

    x: Tensor
    y: Tensor


class Cell(Protocol):
    """One corruption at one severity; severity 0 where a shift has none."""

    @property
    def corruption(self) -> str: ...

    @property
    def severity(self) -> int: ...

    def __len__(self) -> int:
        """Images, unreadable ones among them."""
        ...

    def batches(self, size: int) -> Iterator[Batch]:
        """All readable images in a fixed order, up to `size` at a time."""
        ...


class Files(NamedTuple):
    """Image files of a cell in order of their names, and the place of each one's class folder."""

    paths: list[Path]
    labels: Tensor


@dataclass(frozen=True)
class Reading:
    """How a file becomes pixels.  size: of the square that is cut out of its centre.
    resize: what the shorter side is made before, as in `gratis.data.decoding.cropped`.
    enlarge: whether an image smaller than `size` is made larger, or refused.
    """

    grey: bool
    size: int
    resize: int | None = None
    enlarge: bool = True

    def __call__(self, path: Path) -> npt.NDArray[np.uint8] | str:
        """uint8 [C, H, W], or why it cannot be read."""
        try:
            with Image.open(path) as opened:
                image = plain(opened, self.grey)
        except UNREADABLE as error:
            return str(error) or type(error).__name__
        if not self.enlarge and min(image.size) < self.size:
            raise ValueError(
                f"{path} is {image.width}x{image.height}: smaller than the run's test images of "
                f"{self.size} pixels, and these images are not to be enlarged; evaluate a run "
                "with a smaller data.test_size"
            )
        pixels = np.asarray(cropped(image, self.size, self.resize))
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)

    def in_words(self) -> str:
        centre = f"centre of {self.size} px"
        if self.resize == 0:
            return f"{centre}, not resized"
        return f"shorter side resized to {self.resize or self.size} px, {centre}"


@dataclass(frozen=True, eq=False)
class FileCell:
    """Image files below `directory`.  listed: reads their names, again for every use, since those
    of a whole benchmark fill gigabytes.  classes: the run's class of each class folder [K].
    limit: only so many of the `count`, at the same places in every cell.
    """

    corruption: str
    severity: int
    directory: Path
    count: int
    listed: Callable[[], Files]
    classes: Tensor
    reading: Reading
    limit: int | None = None

    def __len__(self) -> int:
        return min(self.limit or self.count, self.count)

    def batches(self, size: int) -> Iterator[Batch]:
        files = self.listed()
        order = torch.arange(len(files.paths))
        if self.limit is not None:  # files come class by class
            generator = torch.Generator().manual_seed(0)
            order = torch.randperm(len(files.paths), generator=generator)[: self.limit]
        parts = [order[first : first + size] for first in range(0, len(order), size)]
        paths = [[files.paths[i] for i in part.tolist()] for part in parts]
        errors: dict[Path, str] = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = ahead(pool, self.reading, paths)
            for part, names, arrays in zip(parts, paths, found, strict=True):
                read = [array for array in arrays if not isinstance(array, str)]
                errors |= {
                    name: why
                    for name, why in zip(names, arrays, strict=True)
                    if isinstance(why, str)
                }
                kept = torch.tensor([not isinstance(array, str) for array in arrays])
                if read:
                    labels = files.labels[part[kept]]
                    yield Batch(floats(np.stack(read)), self.classes[labels])
        if len(errors) > MOST_SKIPPED * len(order):
            some = "; ".join(f"{path}: {errors[path]}" for path in sorted(errors)[:3])
            raise ValueError(
                f"{len(errors)} of {len(order)} files in {self.directory} cannot be read as "
                f"images (up to {MOST_SKIPPED:.0%} are skipped): {some}"
            )


@dataclass(frozen=True, eq=False)
class ArrayCell:
    """Rows of one file of numpy's, uint8 [N, H, W, 3], of which only a batch is read at a time."""

    corruption: str
    severity: int
    rows: npt.NDArray[np.uint8]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[Batch]:
        for first in range(0, len(self.rows), size):
            rows = np.array(self.rows[first : first + size]).transpose(0, 3, 1, 2)
            yield Batch(floats(rows), self.labels[first : first + size])


@dataclass(frozen=True, eq=False)
class GeneratedCell:
    """Clean images, corrupted while they are asked for, in the processes of `pool` if any."""

    corruption: str
    severity: int
    images: Images
    pool: Executor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[Batch]:
        for first, found in self._made(size):
            rows = np.stack(found).transpose(0, 3, 1, 2)
            yield Batch(floats(rows), self.images.y[first : first + len(rows)].cpu())

    def _made(self, size: int) -> Iterator[tuple[int, list[npt.NDArray[np.uint8]]]]:
        firsts = range(0, len(self.images), size)
        if self.pool is None:
            for first in firsts:
                yield first, each_corrupted(self._clean(first, size), *self._how)
            return
        pieces = (
            [piece for start in range(0, size, PIECES) if (piece := clean[start : start + PIECES])]
            for clean in (self._clean(first, size) for first in firsts)
        )
        made = ahead(self.pool, each_corrupted, pieces, *self._how)
        for first, found in zip(firsts, made, strict=True):
            yield first, [image for piece in found for image in piece]

    @property
    def _how(self) -> tuple[str, int]:
        return self.corruption, self.severity

    def _clean(self, first: int, size: int) -> list[npt.NDArray[np.uint8]]:
        last = min(first + size, len(self.images))
        x = (self.images.pixels(slice(first, last)) * 255).round().to(torch.uint8)
        return list(x.permute(0, 2, 3, 1).cpu().numpy())


def floats(pixels: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255


def ahead(
    pool: Executor,
    work: Callable[..., Made],
    parts: Iterable[Sequence[Item]],
    *settings: Any,
) -> Iterator[list[Made]]:
    """work(item, *settings) for the items of each part, the next one while the caller is busy."""
    waiting: deque[list[Future[Made]]] = deque()
    for part in parts:
        waiting.append([pool.submit(work, item, *settings) for item in part])
        if len(waiting) > 1:
            yield [made.result() for made in waiting.popleft()]
    while waiting:
        yield [made.result() for made in waiting.popleft()]
