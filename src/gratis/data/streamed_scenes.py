"""Images with boxes that do not fit into memory: read as batches ask for them, then fitted."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from gratis.boxes import mirrored
from gratis.data import detection
from gratis.data.annotations import Annotated, annotated
from gratis.data.images import check_classes
from gratis.data.scenes import Scenes, check_memory, fitted, letterboxed
from gratis.data.store import Pixels, Source
from gratis.data.streamed import Keeping, Stored, Streamed


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamedScenes(Streamed):
    """Images and their boxes as `Scenes` has them, in the order of the annotations."""

    listing: Annotated

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the listing's, which of its images these are, and their boxes."""
        digest = hashlib.sha256(super().fingerprint.encode())
        for row in self.rows.tolist():
            digest.update(self.listing.truth[row].numpy().tobytes())
        return digest.hexdigest()

    @property
    def clipped(self) -> int:
        """How many of its boxes reach beyond their image and are cut to it."""
        return int(self.listing.clipped[self.rows].sum())

    @property
    def degenerate(self) -> int:
        """How many boxes of its images had no area inside of them and were left out."""
        return int(self.listing.degenerate[self.rows].sum())

    def square(self, row: int) -> Pixels:
        """The whole image, fitted as its original would be and the rest black."""
        height, width = self.listing.sizes[row].tolist()
        image = Image.fromarray(self.source.image(row))
        return letterboxed(image, self.image_size, (height, width)).transpose(1, 2, 0)

    def targets(self, indices: Tensor, flips: Tensor) -> Tensor:
        """y [M, K, 5] float32, K the same for any of the listing's images; see `gratis.boxes`."""
        rows = self.rows[indices]
        truth = [self.listing.truth[row] for row in rows.tolist()]
        y = detection.targets(truth, self.listing.sizes[rows], self.image_size, self.listing.most)
        return mirrored(y, flips, self.image_size)

    def in_memory(self, size: int, resize: int | None, workers: int) -> Scenes:
        """All of them from their files, in squares of `size`; `resize` is for class folders."""
        return detection.in_memory(self.listing, self.rows, size)


def training_scenes(
    kept: Keeping,
    stored: tuple[Stored, ...],
    image_size: int,
    limit: int | None,
    judged_on: tuple[str, int],
) -> tuple[StreamedScenes, dict[Stored, Source]]:
    """The training images in COCO's layout, read from the first of `stored`; and each of `stored`
    as a source; see `Keeping.sources`.

    judged_on: the split that is, and the side of its squares in memory: what is wrong there shall
    be known before much is decoded.
    Raises ValueError for what `annotated`, `check_classes` and `check_memory` refuse, or an image
    of another size than annotated.
    """
    listing = annotated(kept.root, "train")
    split, side = judged_on
    judged = listing if split == "train" else annotated(kept.root, split)
    check_classes(listing, judged)
    check_memory(len(judged), side, str(judged.directory))
    order = torch.arange(len(listing))
    sources, rows, skipped = kept.sources(listing, order, stored, limit, no_longer)
    images = StreamedScenes(
        listing=listing,
        rows=rows,
        source=sources[stored[0]],
        image_size=image_size,
        skipped=skipped,
    )
    return images, sources


def no_longer(side: int) -> Callable[[Image.Image], Image.Image]:
    """The longer side made `side` pixels, as `letterboxed` makes it; none is enlarged."""

    def shrunk(image: Image.Image) -> Image.Image:
        if max(image.size) <= side:
            return image
        height, width = fitted(image.height, image.width, side)
        return image.resize((width, height), Image.Resampling.BILINEAR)

    return shrunk
