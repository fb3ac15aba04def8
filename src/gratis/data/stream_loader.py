"""Batches of a set that is streamed: read, cut and flipped ahead of time by several threads."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gratis.data.augment import parse_augment, random_box
from gratis.data.epochs import Epochs
from gratis.data.images import as_pixels, moved_to
from gratis.data.store import Pixels
from gratis.data.streamed import Streamed
from gratis.data.streamed_scenes import StreamedScenes

AHEAD = 3
"""Batches in the making while one is learned from."""
TASK = 8
"""Images that a thread makes at a time."""


class StreamLoader(Epochs):
    """Shuffled, augmented batches of `images`, made by `workers` threads while others are used.

    As `Loader`: order, parts and flips of an epoch depend on (seed, epoch number, image) alone,
    and `take`, `world` say which rows of each batch are ours; only these are read.

    augment: `resized-crop` (augment.random_box) and `flip`; without the former the images'
    `square`. Boxes are mirrored with their images, and follow no crop.

    Raises ValueError for a batch larger than the data, or another augmentation.
    """

    unlabelled = None

    def __init__(
        self,
        images: Streamed,
        batch_size: int,
        *,
        seed: int,
        augment: Sequence[str] = (),
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        take: Callable[[int], Tensor] = torch.arange,
        world: int = 1,
        workers: int = 1,
    ) -> None:
        if not 1 <= batch_size <= len(images):
            raise ValueError(
                f"the batch size is {batch_size} and {images.name} ({images.split}) has "
                f"{len(images)} images; give a batch size from 1 to {len(images)}"
            )
        self.augmentation = parse_augment(augment)
        if self.augmentation.pad:
            raise ValueError(
                f"data.augment: crop-{self.augmentation.pad} is for images in memory; those of "
                "data.stored take resized-crop and flip"
            )
        if self.augmentation.resized and isinstance(images, StreamedScenes):
            raise ValueError("data.augment: boxes follow a flip, no crop; leave resized-crop out")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._count = len(images)
        self.drop_last, self.device = drop_last, torch.device(device)
        self.take, self.world, self.workers = take, world, workers

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number` from `start_batch` on.

        Each is (x float32 [B, 3, S, S] in [0, 1], y int64 [B] or boxes [B, M, 5] float32), on the
        loader's device.
        """
        mixed = np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(len(self.images), generator=generator)
        starts = range(0, len(order), self.batch_size)
        sizes = list(zip(starts, self.batch_sizes, strict=False))[start_batch:]
        key = int(mixed[1])
        with ThreadPool(self.workers) as pool:
            making: deque[_Making] = deque()
            for start, size in sizes:
                making.append(self._begin(order[start + self.take(size)], key, pool))
                if len(making) > AHEAD:
                    yield self._finished(making.popleft())
            while making:
                yield self._finished(making.popleft())

    def _begin(self, chosen: Tensor, key: int, pool: ThreadPool) -> "_Making":
        side = self.images.image_size
        pinned = self.device.type == "cuda"
        x = torch.empty(len(chosen), side, side, 3, dtype=torch.uint8, pin_memory=pinned)
        flips = torch.zeros(len(chosen), dtype=torch.bool)
        pixels, flipped, rows = x.numpy(), flips.numpy(), self.images.rows[chosen].tolist()

        def make(first: int) -> None:
            for place in range(first, min(first + TASK, len(rows))):
                pixels[place], flipped[place] = self._image(rows[place], key)

        work = pool.map_async(make, range(0, len(rows), TASK), chunksize=1)
        return _Making(chosen, x, flips, work)

    def _finished(self, batch: "_Making") -> tuple[Tensor, Tensor]:
        batch.work.get()
        moved = moved_to(self.device, batch.x).permute(0, 3, 1, 2)
        y = self.images.targets(batch.chosen, batch.flips)
        return as_pixels(moved.contiguous()), moved_to(self.device, y)

    def _image(self, row: int, key: int) -> tuple[Pixels, bool]:
        """One image, cut and flipped as the epoch's key and its row say: uint8 [S, S, 3]; and
        whether it was flipped.
        """
        draw = np.random.Generator(np.random.Philox(key=[key, row]))
        flipped = self.augmentation.flip and draw.random() < 0.5
        if self.augmentation.resized:
            pixels, side = self.images.source.image(row), self.images.image_size
            height, width = pixels.shape[:2]
            left, top, right, bottom = random_box(width, height, draw)
            part = Image.fromarray(pixels[top:bottom, left:right])
            made = np.asarray(part.resize((side, side), Image.Resampling.BILINEAR))
        else:
            made = self.images.square(row)
        return made[:, ::-1] if flipped else made, flipped


class _Making(NamedTuple):
    """A batch that threads are at work on: which images, pixels to be [B, S, S, 3], and flips."""

    chosen: Tensor
    x: Tensor
    flips: Tensor
    work: "AsyncResult[list[None]]"
