"""A labelled set that does not fit into memory: its images are read as batches ask for them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gratis.data.decoding import cropped
from gratis.data.images import Images, as_pixels
from gratis.data.listing import ClassFolders, Listing, listed
from gratis.data.store import Files, Pixels, Source, Store, no_larger

CACHE = ".gratis-cache"
"""Where decoded images lie below the data's root unless data.cache says otherwise."""

Stored = int | str
"""The side of images that are kept decoded, the shorter one or with boxes the longer one; or
"files".
"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Streamed(ABC):
    """Images of a listing, read from `source` one by one; for the rest as `Images`.

    rows: [N], places of its images in the order that `source` has them in.
    image_size: the side in pixels of the squares that batches hold.
    """

    listing: Listing
    rows: Tensor
    source: Source
    image_size: int
    skipped: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.listing.classes

    @property
    def name(self) -> str:
        return self.listing.name

    @property
    def split(self) -> str:
        return self.listing.split

    @property
    def note(self) -> str | None:
        return self.listing.note

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width, of what batches hold."""
        return 3, self.image_size, self.image_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the listing's and which of its images these are; not over pixels."""
        digest = hashlib.sha256(self.listing.fingerprint.encode())
        digest.update(self.rows.numpy().data)
        return digest.hexdigest()

    def select(self, indices: Tensor) -> Self:
        """The images at `indices` [M], in that order."""
        return replace(self, rows=self.rows[indices])

    def pixels(self, indices: Tensor | slice) -> Tensor:
        """The squares of the images at `indices` [M]: float32 [M, 3, S, S] in [0, 1]."""
        squares = [self.square(row) for row in self.rows[indices].tolist()]
        return as_pixels(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous())

    @abstractmethod
    def square(self, row: int) -> Pixels:
        """What a batch holds of the image at `row` unless a part is cut out: [S, S, 3]."""

    @abstractmethod
    def targets(self, indices: Tensor, flips: Tensor) -> Tensor:
        """y [M, ...] of the images at `indices` [M], those of `flips` [M] left to right."""

    @abstractmethod
    def in_memory(self, size: int, resize: int | None, workers: int) -> Images:
        """All of them from their files, as test images are; see `load` for `resize`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamedFolder(Streamed):
    """Images of class folders, in a fixed order at random.  labels: of the whole order, int64."""

    listing: ClassFolders
    labels: Tensor

    @property
    def y(self) -> Tensor:
        """[N], int64."""
        return self.labels[self.rows]

    def square(self, row: int) -> Pixels:
        """The largest square in the centre."""
        return np.asarray(cropped(Image.fromarray(self.source.image(row)), self.image_size))

    def targets(self, indices: Tensor, flips: Tensor) -> Tensor:
        """y [M], int64."""
        return self.labels[self.rows[indices]]

    def in_memory(self, size: int, resize: int | None, workers: int) -> Images:
        """All of them from their files, cut as test images are; see `decoding.cropped`."""
        files = Files(self.listing, _order(self.listing))

        def decode(row: int) -> Pixels:
            return np.asarray(cropped(Image.fromarray(files.image(row)), size, resize))

        with ThreadPool(workers) as pool:
            squares = pool.map(decode, self.rows.tolist(), chunksize=16)
        x = np.stack(squares) if squares else np.empty((0, size, size, 3), np.uint8)
        return Images(
            x=torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(),
            y=self.y,
            classes=self.classes,
            name=self.name,
            split=self.split,
            note=self.note,
        )


@dataclass(frozen=True)
class Keeping:
    """How the images of one root are kept: where, how many threads decode, who shares the work.

    share: (rank, world) of this process.  progress: (images done, all), now and then.
    """

    root: Path
    cache: Path | None = None
    workers: int = 1
    share: tuple[int, int] = (0, 1)
    progress: Callable[[int, int], None] | None = None

    @property
    def directory(self) -> Path:
        return self.cache or self.root / CACHE

    def training(
        self, stored: tuple[Stored, ...], image_size: int, limit: int | None
    ) -> tuple[StreamedFolder, dict[Stored, Source]]:
        """The training images of class folders, read from the first of `stored`; and each of
        `stored` as a source; see `sources`. Raises ValueError for what `listed` refuses too.
        """
        listed(self.root, "test")  # what is wrong there shall be known before much is decoded
        listing = listed(self.root, "train")
        order = _order(listing)
        sources, rows, skipped = self.sources(listing, order, stored, limit, no_larger)
        images = StreamedFolder(
            listing=listing,
            rows=rows,
            labels=listing.labels[order],
            source=sources[stored[0]],
            image_size=image_size,
            skipped=skipped,
        )
        return images, sources

    def sources(
        self,
        listing: Listing,
        whole: Tensor,
        stored: tuple[Stored, ...],
        limit: int | None,
        shrunk: Callable[[int], Callable[[Image.Image], Image.Image]],
    ) -> tuple[dict[Stored, Source], Tensor, tuple[str, ...]]:
        """(each of `stored` as a source of a listing's images in the order `whole`; the places
        in it of the first `limit` images, less damaged files; the names of those).

        Decodes first what is not kept yet. Files that one of them cannot read are left out of all.
        shrunk: pixels of a side -> what is kept of an image.
        Raises ValueError for too many damaged files, or too small a disk.
        """
        order = whole if limit is None else whole[:limit]
        sources: dict[Stored, Source] = {}
        errors: dict[Path, str] = {}
        for side in dict.fromkeys(stored):
            if isinstance(side, str):
                sources[side] = Files(listing, order)
                continue
            store = Store(
                listing, whole, self.directory, str(side), shrunk(side), needed=len(order)
            )
            store.fill(self.workers, share=self.share, progress=self.progress)
            errors |= store.errors
            sources[side] = store
        listing.check_skipped(errors)
        readable = [listing.paths[place] not in errors for place in order.tolist()]
        return sources, torch.tensor(readable).nonzero().flatten(), listing.skipped(errors)

    def test(self, size: int, resize: int | None) -> Images:
        """The test images as `Images` whose pixels stay on the disk until they are looked at."""
        listing = listed(self.root, "test")
        order = _order(listing)
        name = f"{size}" if resize is None else f"{resize}-{size}"
        store = Store(
            listing,
            order,
            self.directory,
            name,
            partial(cropped, size=size, resize=resize),
            chunk=len(order),
        )
        store.fill(self.workers, progress=self.progress)
        listing.check_skipped(store.errors)
        kept = torch.tensor([listing.paths[place] not in store.errors for place in order.tolist()])
        return Images(
            x=torch.from_numpy(store.alike()).permute(0, 3, 1, 2),
            y=listing.labels[order][kept],
            classes=listing.classes,
            name=listing.name,
            split="test",
            note=listing.note,
            skipped=listing.skipped(store.errors),
        )


def _order(listing: Listing) -> Tensor:
    """A fixed order at random, the same as that of a folder in memory."""
    return torch.randperm(len(listing), generator=torch.Generator().manual_seed(0))
