"""Training with few labels: which are kept, and batches that hold images without any."""

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gratis.data.images import Images, as_pixels
from gratis.tasks import NO_LABEL


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images [M, C, H, W] (uint8, or float32 in [0, 1]) to learn from beside the labelled ones.

    y: [M], int64: NO_LABEL, or what a model takes them for.
    share: the part of every batch that is drawn from them, above 0 and below 1.
    """

    x: Tensor
    y: Tensor
    share: float

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, dtype and pixels, 64 hex digits; the same on any device."""
        digest = hashlib.sha256(f"{list(self.x.shape)} {self.x.dtype}".encode())
        for first in range(0, len(self.x), 1024):
            digest.update(self.x[first : first + 1024].cpu().contiguous().numpy().data)
        return digest.hexdigest()


def keep_labels(images: Images, count: int, *, seed: int) -> tuple[Images, Tensor]:
    """(the `count` images that keep their labels, the pixels [N - count, C, H, W] of the others).

    Classes get equally many labels, the first ones one more where that does not come out even;
    which images is drawn by the seed. Both keep the order they had.

    Raises ValueError for more labels than images, fewer than classes, or a class without enough.
    """
    classes = len(images.classes)
    if not classes <= count <= len(images):
        raise ValueError(
            f"data.labels: {count} labels are to be kept of {images.name}, which has "
            f"{len(images)} images of {classes} classes; give {classes} to {len(images)}"
        )
    order = _permutation(len(images), seed, "labels", 0)
    chosen = []
    for label in range(classes):
        wanted = count // classes + (label < count % classes)
        of_class = order[images.y[order].cpu() == label]
        if len(of_class) < wanted:
            raise ValueError(
                f"data.labels: {count} labels are {wanted} of class {images.classes[label]}, "
                f"which has {len(of_class)} images; keep fewer"
            )
        chosen.append(of_class[:wanted])
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[torch.cat(chosen)] = True
    others = (~kept).nonzero().flatten().to(images.x.device)
    return images.select(kept.nonzero().flatten()), images.x[others]


def drawn(x: Tensor, count: int, *, seed: int) -> Tensor:
    """`count` of the images x [N, ...], or all if there are no more, drawn by the seed."""
    chosen = _permutation(len(x), seed, "limit", 0)[:count].sort().values
    return x[chosen.to(x.device)]


def together(parts: list[Tensor], like: Images, share: float) -> Unlabelled:
    """All images of `parts`, in the pixel type of `like`, as yet without labels.

    Raises ValueError for images of another shape than `like`'s, or none at all.
    """
    for x in parts:
        if x.shape[1:] != like.x.shape[1:]:
            size, needed = ("x".join(map(str, of.shape[1:])) for of in (x, like.x))
            raise ValueError(
                f"data.unlabelled: the images are {size} (channels x height x width) and those "
                f"of {like.name} {needed}; they must be the same: see data.image_size"
            )
    if not any(len(x) for x in parts):
        raise ValueError(
            "data.unlabelled: there are no images without labels; keep fewer labels, name a "
            "source of such images, or set share to 0"
        )
    same = all(x.dtype == like.x.dtype for x in parts)
    x = torch.cat([x if same else as_pixels(x) for x in parts])
    return Unlabelled(x, torch.full((len(x),), NO_LABEL), share)


def mixed_order(
    labelled: int, unlabelled: int, share: float, *, places: int, seed: int, epoch: int
) -> Tensor:
    """Rows [places] of one epoch, into labelled images followed by unlabelled ones.

    places: how many of the epoch's images are used: a short last batch may be left out.

    Place i of the epoch belongs to an unlabelled image where i * share passes a whole number, so
    that any n places in a row hold n * share of them, to within one: a batch, and any equal cut
    of a batch into consecutive parts. Both kinds of image are dealt from an endless row of
    shuffled decks, each epoch going on where the one before ended: every image comes up as often
    as any other of its kind, to within once.
    """
    exact = Fraction(share).limit_denominator(10**6)
    passed = torch.arange(places + 1) * exact.numerator // exact.denominator
    without = passed.diff().bool()
    count = int(without.sum())
    order = torch.empty(places, dtype=torch.int64)
    order[~without] = _dealt(labelled, places - count, epoch, seed, "labelled")
    order[without] = labelled + _dealt(unlabelled, count, epoch, seed, "unlabelled")
    return order


def _dealt(size: int, count: int, epoch: int, seed: int, what: str) -> Tensor:
    """Hand number `epoch` of `count` cards [count], from shuffled decks of `size` cards."""
    begin, end = epoch * count, (epoch + 1) * count
    first, last = begin // size, -(-end // size)
    decks = [_permutation(size, seed, what, deck) for deck in range(first, last)]
    return torch.cat([torch.arange(0), *decks])[begin - first * size : end - first * size]


def _permutation(size: int, seed: int, what: str, number: int) -> Tensor:
    """A permutation [size] for each seed, purpose and number, on the CPU."""
    mixed = np.random.SeedSequence((seed, number, *what.encode())).generate_state(1, np.uint64)
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(mixed[0])))
