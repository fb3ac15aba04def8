"""Batches of a set that is streamed: read, cut and flipped ahead of time by several threads."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gratis.data.augment import parse_augment, random_box
from gratis.data.epochs import Epochs
from gratis.data.folder import cropped
from gratis.data.images import as_pixels
from gratis.data.streamed import Streamed

AHEAD = 3
"""Batches in the making while one is learned from."""
TASK = 8
"""Images that a thread makes at a time."""


class StreamLoader(Epochs):
    """Shuffled, augmented batches of `images`, made by `workers` threads while others are used.

    As `Loader`: order, parts and flips of an epoch depend on (seed, epoch number, image) alone,
    and `take`, `world` say which rows of each batch are ours; only these are read.

    augment: `resized-crop` (augment.random_box) and `flip`; without the former the largest square
    in the centre of each image.

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
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._count = len(images)
        self.drop_last, self.device = drop_last, torch.device(device)
        self.take, self.world, self.workers = take, world, workers

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number` from `start_batch` on.

        Each is (x float32 [B, 3, S, S] in [0, 1], y int64 [B]), on the loader's device.
        """
        mixed = np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(len(self.images), generator=generator)
        starts = range(0, len(order), self.batch_size)
        sizes = list(zip(starts, self.batch_sizes, strict=False))[start_batch:]
        key = int(mixed[1])
        with ThreadPool(self.workers) as pool:
            making: deque[tuple[Tensor, Tensor, AsyncResult[list[None]]]] = deque()
            for start, size in sizes:
                making.append(self._begin(order[start + self.take(size)], key, pool))
                if len(making) > AHEAD:
                    yield self._finished(*making.popleft())
            while making:
                yield self._finished(*making.popleft())

    def _begin(
        self, chosen: Tensor, key: int, pool: ThreadPool
    ) -> tuple[Tensor, Tensor, "AsyncResult[list[None]]"]:
        """A batch that threads are at work on: (pixels to be [B, S, S, 3], labels, the work)."""
        side = self.images.image_size
        x = torch.empty(len(chosen), side, side, 3, dtype=torch.uint8)
        if self.device.type == "cuda":
            x = x.pin_memory()
        pixels, rows = x.numpy(), self.images.rows[chosen].tolist()

        def make(first: int) -> None:
            for place in range(first, min(first + TASK, len(rows))):
                pixels[place] = self._image(rows[place], key)

        work = pool.map_async(make, range(0, len(rows), TASK), chunksize=1)
        return x, self.images.y[chosen], work

    def _finished(
        self, x: Tensor, y: Tensor, work: "AsyncResult[list[None]]"
    ) -> tuple[Tensor, Tensor]:
        work.get()
        moved = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return as_pixels(moved.contiguous()), y.to(self.device)

    def _image(self, row: int, key: int) -> np.ndarray:
        """One image, cut and flipped as the epoch's key and its row say: uint8 [S, S, 3]."""
        draw = np.random.Generator(np.random.Philox(key=[key, row]))
        pixels, side = self.images.source.image(row), self.images.image_size
        flipped = self.augmentation.flip and draw.random() < 0.5
        if self.augmentation.resized:
            height, width = pixels.shape[:2]
            left, top, right, bottom = random_box(width, height, draw)
            part = Image.fromarray(pixels[top:bottom, left:right])
            image = part.resize((side, side), Image.Resampling.BILINEAR)
        else:
            image = cropped(Image.fromarray(pixels), side)
        made = np.asarray(image)
        return made[:, ::-1] if flipped else made
