"""Batches of a set that lies on the device, each epoch a pure function of seed and number."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gratis.boxes import mirrored as mirrored_boxes
from gratis.data.augment import parse_augment
from gratis.data.epochs import Epochs
from gratis.data.images import Images, as_pixels, moved_to
from gratis.data.scenes import Scenes
from gratis.data.unlabelled import Unlabelled, mixed_order


class Loader(Epochs):
    """Shuffled, augmented batches of `images`, which are moved to `device` once; those with boxes,
    of which a set may be larger than a card, batch by batch.

    Order, crops and flips of an epoch depend on (seed, epoch number) alone and are drawn on the
    CPU: a run that resumes in the middle of an epoch sees bitwise the batches that it would have
    seen, on any device.

    batch_size: images a batch; the last one is shorter, or left out with `drop_last`.
    augment: names as in `parse_augment`, such as `["crop-4", "flip"]`.
    take, world: one of `world` loaders that share each batch: take(a batch's images) -> which of
    its rows [B / world] are ours. A short last batch is cut to a multiple of `world`. Order,
    crops and flips are those of the whole.
    unlabelled: images that take their share of every batch, their y as it is there. An epoch
    has as many images as without them, so it holds that much fewer of the labelled ones
    (Carmon 2019's count); see `mixed_order`.

    Raises ValueError for a batch larger than the data, or no data.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int,
        augment: Sequence[str] = (),
        shuffle: bool = True,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        take: Callable[[int], Tensor] = torch.arange,
        world: int = 1,
        unlabelled: Unlabelled | None = None,
    ) -> None:
        if not len(images):
            raise ValueError(f"{images.name} ({images.split}) has no images to make batches of")
        if batch_size < 1 or batch_size > len(images):
            raise ValueError(
                f"the batch size is {batch_size} and {images.name} ({images.split}) has "
                f"{len(images)} images; give a batch size from 1 to {len(images)}"
            )
        if seed < 0:
            raise ValueError(f"the seed is {seed}; give 0 or more")
        self.augmentation = parse_augment(augment)
        if self.augmentation.pad >= min(images.x.shape[2:]):
            raise ValueError(
                f"crop-{self.augmentation.pad} on images of {images.x.shape[2]}x"
                f"{images.x.shape[3]} pixels would leave some of them black: pad less"
            )
        if self.augmentation.resized:
            raise ValueError(
                "data.augment: resized-crop cuts parts out of larger images, but these are in "
                f"memory at {images.x.shape[2]}x{images.x.shape[3]}; set data.stored to the side "
                "of larger ones, or use crop-4"
            )
        self.device, self.unlabelled = torch.device(device), unlabelled
        self.images = images if isinstance(images, Scenes) else images.to(device)
        self._x, self._y = self.images.x, self.images.y
        if unlabelled is not None:
            parts = [
                x if images.x.dtype == unlabelled.x.dtype else as_pixels(x)
                for x in (self._x, unlabelled.x.to(device))
            ]
            self._x = torch.cat(parts)
            self._y = torch.cat([self._y, unlabelled.y.to(device)])
            # a view: pixels lie on the device once
            self.images = replace(images, x=self._x[: len(images)], y=self._y[: len(images)])
        self._count, self.batch_size = len(images), batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.take, self.world = take, world

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number` from `start_batch` on.

        Each is (x float32 [B, C, H, W] in [0, 1], y int64 [B]), on the loader's device; boxes
        [B, M, 5] are mirrored with their images.
        """
        device, count = self.images.x.device, len(self.images)
        # SeedSequence mixes the two well, where seed + number would give run 1 the epochs of run 0.
        mixed = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = self._order(count, number, generator)
        corners, flips = self.augmentation.draw(count, generator)
        starts = range(0, count, self.batch_size)
        sizes = list(zip(starts, self.batch_sizes, strict=False))[start_batch:]
        taken = [start + self.take(size) for start, size in sizes]
        ours, lengths = torch.cat([torch.arange(0), *taken]), [len(rows) for rows in taken]
        drawn = [
            torch.split_with_sizes(of_all[ours].to(device), lengths)
            for of_all in (order, corners, flips)
        ]
        for rows, crops, mirrored in zip(*drawn, strict=True):
            x = self.augmentation.apply(self._x[rows], crops, mirrored)
            y = self._y[rows]
            if isinstance(self.images, Scenes):
                y = mirrored_boxes(y, mirrored, self.images.side)
            yield as_pixels(moved_to(self.device, x)), moved_to(self.device, y)

    def label(self, y: Tensor) -> None:
        """Let the unlabelled images come with labels y [M] from now on."""
        self._y[len(self.images) :] = y

    def _order(self, count: int, number: int, generator: torch.Generator) -> Tensor:
        if self.unlabelled is not None:
            others = self.unlabelled
            return mixed_order(
                count,
                len(others),
                others.share,
                places=sum(self.batch_sizes),
                seed=self.seed,
                epoch=number,
            )
        return torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
