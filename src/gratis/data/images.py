"""A labelled set of images in memory, checked once, and the part of it that is held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gratis.data.advice import some


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels, all of one size.

    x: [N, C, H, W], uint8 (0 to 255) or float32 (0 to 1).
    y: [N], int64, indices into `classes`.
    name, split: where they come from, for reports. note: what a reader of figures on them must
    be told. skipped: files that could not be read.

    Raises ValueError where these do not hold.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    note: str | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"{self.name} ({self.split})"
        if self.x.ndim != 4:
            raise ValueError(
                f"{where}: x has shape {list(self.x.shape)}; [N, C, H, W] is needed: "
                "grey images have C = 1"
            )
        if self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"{where}: y has shape {list(self.y.shape)} for {len(self.x)} images; "
                "one class index for each image is needed"
            )
        if self.y.dtype != torch.int64:
            raise ValueError(f"{where}: y is {self.y.dtype}; int64 class indices are needed")
        if len(self.classes) < 2:
            raise ValueError(
                f"{where}: there are {len(self.classes)} classes; two at least are needed"
            )
        if self.x.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                f"{where}: x is {self.x.dtype}; uint8 (0 to 255) or float32 (0 to 1) is needed"
            )
        if self.x.numel() == 0:
            return  # what `hold_out` gives for a share of 0; there is nothing to look at
        self._check_values(where)

    def _check_values(self, where: str) -> None:
        low, high = (int(label) for label in self.y.aminmax())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"{where}: labels run from {low} to {high}; with {len(self.classes)} classes "
                f"they must lie between 0 and {len(self.classes) - 1}"
            )
        if self.x.dtype == torch.uint8:
            return
        darkest, brightest = (float(pixel) for pixel in self.x.aminmax())  # NaN if any pixel is
        if darkest != darkest:
            raise ValueError(f"{where}: some pixels are NaN; numbers between 0 and 1 are needed")
        if darkest < 0 or brightest > 1:
            advice = (
                "divide by 255" if darkest >= 0 else "undo the normalisation: it is the model's"
            )
            raise ValueError(
                f"{where}: pixels run from {darkest:g} to {brightest:g}; floats must lie between "
                f"0 and 1: {advice}"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, dtype, pixels and labels, 64 hex digits; the same on any device."""
        digest = hashlib.sha256(f"{list(self.x.shape)} {self.x.dtype}".encode())
        for part in (self.x, self.y):
            for first in range(0, len(part), 1024):  # pixels may lie on a disk, more than fit
                digest.update(part[first : first + 1024].cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: str | torch.device) -> "Images":
        """The same images on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def select(self, indices: Tensor) -> "Images":
        """The images at `indices` [M], in that order."""
        indices = indices.to(self.x.device)
        return replace(self, x=self.x[indices], y=self.y[indices])

    def pixels(self, indices: Tensor | slice) -> Tensor:
        """The images at `indices` [M] as float32 in [0, 1]: [M, C, H, W]."""
        return as_pixels(self.x[indices])


def moved_to(device: torch.device, made: Tensor) -> Tensor:
    """What the host has made, on `device`, without waiting for what that is doing."""
    if device.type == "cuda" and made.device.type == "cpu":
        return made.pin_memory().to(device, non_blocking=True)
    return made.to(device)


def as_pixels(x: Tensor) -> Tensor:
    """uint8 from 0 to 255, or floats in [0, 1] -> float32 in [0, 1]."""
    return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x


class Named(Protocol):
    """What is known of a set of images without looking at any."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


class Described(Named, Protocol):
    """What a set of images says of itself, wherever its pixels are."""

    @property
    def shape(self) -> tuple[int, int, int]: ...


def check_match(training: Described, test: Described, *, resized: bool = False) -> None:
    """Raise ValueError unless a model trained on `training` can be asked about `test`.

    Images must have the same shape, but for their size if they are `resized` on purpose, and
    labels the same meaning (see `check_classes`).
    """
    compared = slice(1) if resized else slice(3)
    if training.shape[compared] != test.shape[compared]:
        raise ValueError(
            f"{training.name}: {training.split} images are {_size(training)} and {test.split} "
            f"images {_size(test)} (channels x height x width); they must be the same"
        )
    check_classes(training, test)


def check_classes(training: Named, test: Named) -> None:
    """Raise ValueError unless labels mean the same in both. A test set may lack the last classes:
    where they are counted from the labels, it need not contain the highest one.
    """
    if training.classes[: len(test.classes)] != test.classes:
        raise ValueError(
            f"{training.name}: the classes differ: "
            + different_classes(training.split, training.classes, test.split, test.classes)
        )


def first_of(images: Images, limit: int) -> Images:
    """The first images of a test split; ValueError if they say nothing of the other classes."""
    chosen = images.select(torch.arange(min(limit, len(images))))
    if len(chosen) >= 10 * len(images.classes) and int(chosen.y.min()) == int(chosen.y.max()):
        raise ValueError(
            f"the first {len(chosen)} {images.split} images of {images.name} are all of class "
            f"{images.classes[int(chosen.y[0])]}: shuffle the data, or evaluate all of it"
        )
    return chosen


def different_classes(name: str, classes: Sequence[str], other: str, others: Sequence[str]) -> str:
    """What to tell a user about two lists of class names that should be equal."""
    only = [f"only in {name}: {some([c for c in classes if c not in others])}"]
    only += [f"only in {other}: {some([c for c in others if c not in classes])}"]
    named = [part for part in only if not part.endswith(": ")]
    return "; ".join(named) if named else f"the same names in another order in {name} and {other}"


def hold_out(
    images: Images, share: float, *, seed: int, at_most: int = 1000
) -> tuple[Images, Images]:
    """Split `images` at random into (training, held out); both keep the order they had.

    For the other arguments and errors see `divided`.
    """
    held_out, training = divided(len(images), share, seed=seed, at_most=at_most)
    return images.select(training), replace(images.select(held_out), split="held-out")


def divided(count: int, share: float, *, seed: int, at_most: int = 1000) -> tuple[Tensor, Tensor]:
    """Which of so many images are held out, at random, and which are not; both rising.

    share: a fraction below 1, then at least one image and not more than `at_most`; or a count,
    an int of 1 or more; or 0, then the held-out part is empty.
    seed: the same seed holds out the same images.

    Raises ValueError where nothing would be left to train on.
    """
    if isinstance(share, int):
        held = share
    elif 0 <= share < 1:
        held = min(at_most, max(1, round(share * count))) if share else 0
    else:
        raise ValueError(
            f"the share to hold out is {share}; it must be a fraction below 1 or a count, an int"
        )
    if not 0 <= held < count:
        raise ValueError(
            f"{held} of {count} images are to be held out; "
            f"give a count from 0 to {count - 1}, or a fraction below 1"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:held].sort().values, order[held:].sort().values


def _size(images: Described) -> str:
    return "x".join(str(n) for n in images.shape)
