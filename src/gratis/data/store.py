"""Decoded images on disk: every file is decoded once, and its pixels are read from there on."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from gratis.data.decoding import UNREADABLE, plain
from gratis.data.listing import Listing

CHUNK = 2048
"""Images in a file of pixels: what an interrupted decoding loses at most."""
FORSAKEN_SECONDS = 3600
SAMPLE = 32
FORMAT = 1

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]


class Source(Protocol):
    """Where the pixels of a listing's images come from, each by its place in the order."""

    def image(self, place: int) -> Pixels:
        """uint8 [H, W, 3], its size its own."""
        ...


class Files:
    """Images decoded each time that they are asked for. ValueError names a damaged file, or one
    of another size than the listing knows.
    """

    def __init__(self, listing: Listing, order: Tensor) -> None:
        self.listing, self.order = listing, order

    def image(self, place: int) -> Pixels:
        number = int(self.order[place])
        found = decoded(self.listing, number, np.asarray)
        if isinstance(found, str):
            raise ValueError(
                f"{self.listing.paths[number]} cannot be read as an image ({found}); take it away, "
                "or set data.stored to a number of pixels: such files are then found beforehand "
                "and left out"
            )
        return found


class Store:
    """Images of a listing, in `order`, decoded to uint8 files below `directory`.

    shrunk: a PIL image -> the one to keep, in 8 bits and three channels; name: what tells its
    outcome from that of another.  chunk: how many images a file holds.  needed: how many of the
    first images will be asked for, all unless given; whole files are made of them.
    Files of pixels appear whole or not at all, so that several processes may fill a store
    together, and an interrupted one is gone on with.
    """

    def __init__(
        self,
        listing: Listing,
        order: Tensor,
        directory: Path,
        name: str,
        shrunk: Callable[[Image.Image], Image.Image],
        chunk: int = CHUNK,
        needed: int | None = None,
    ) -> None:
        self.listing, self.order, self.shrunk, self.chunk = listing, order, shrunk, chunk
        self.needed = len(order) if needed is None else needed
        kept = f"{listing.split}-{name}-{listing.fingerprint[:16]}-v{FORMAT}"
        self.directory = directory / kept
        # what is asked for repeatedly: a memory map for each chunk, opened once
        self._chunk = lru_cache(maxsize=None)(self._opened)

    @property
    def chunks(self) -> int:
        return -(-self.needed // self.chunk)

    def fill(
        self, workers: int, *, share: tuple[int, int] = (0, 1), progress: Progress | None = None
    ) -> None:
        """Decode what is not there yet; returns when all is.

        share: (rank, world) of a process among several that fill alike: each begins elsewhere.
        Raises ValueError where the disk has not enough room, before anything is written, and for
        an image of another size than the listing knows.
        """
        rank, world = share
        begin = rank * self.chunks // world
        turns = [(begin + turn) % self.chunks for turn in range(self.chunks)]
        missing = [number for number in turns if not self._index(number).exists()]
        if not missing:
            return
        _make(self.directory)
        with ThreadPool(workers) as pool:
            self._check_room(len(missing), pool)
            for number in missing:
                if progress is not None:
                    done = sum(self._index(other).exists() for other in turns)
                    progress(min(done * self.chunk, self.needed), self.needed)
                if not self._index(number).exists():  # another process may have been here
                    self._decode(number, pool)

    @cached_property
    def errors(self) -> dict[Path, str]:
        """The files that could not be read, and why."""
        found: dict[Path, str] = {}
        for number in range(self.chunks):
            found |= {
                self._path(int(place)): reason
                for place, reason in self._read_index(number)["errors"].items()
            }
        return found

    def image(self, place: int) -> Pixels:
        number, inside = divmod(place, self.chunk)
        pixels, sizes, starts = self._chunk(number)
        height, width = sizes[inside]
        start = starts[inside]
        return pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def alike(self) -> Pixels:
        """All images [N, H, W, 3] of a store of one chunk whose images have one size; those that
        could not be read are left out. Read from the disk as they are looked at.
        """
        pixels, sizes, _ = self._chunk(0)
        height, width = sizes.max(0)
        return pixels.reshape(-1, height, width, 3)

    def _path(self, place: int) -> Path:
        return self.listing.paths[int(self.order[place])]

    def _index(self, number: int) -> Path:
        return self.directory / f"{number:05d}.json"

    def _read_index(self, number: int) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads(self._index(number).read_text("utf-8"))
        return found

    def _opened(self, number: int) -> tuple[Pixels, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        sizes = np.array(self._read_index(number)["sizes"], dtype=np.int64).reshape(-1, 2)
        starts = np.concatenate([[0], 3 * sizes.prod(1).cumsum()[:-1]])
        path = self._index(number).with_suffix(".u8")
        # copy-on-write: nothing that is done to the pixels in memory reaches the file
        return np.memmap(path, np.uint8, mode="c"), sizes, starts

    def _decode(self, number: int, pool: ThreadPool) -> None:
        """One chunk: its pixels first, then its index, which says that they are whole."""
        places = range(number * self.chunk, min((number + 1) * self.chunk, len(self.order)))
        sizes, errors = [], {}
        index = self._index(number)
        for left in self.directory.glob(f"{number:05d}.*.tmp"):
            _remove_if_forsaken(left)
        # several machines may fill one directory, and in containers their processes' numbers agree
        fresh = index.with_suffix(f".{uuid4().hex}.tmp")
        try:
            with fresh.open("wb") as file:
                for place, (pixels, error) in zip(
                    places, pool.imap(self._decoded, places, chunksize=16), strict=True
                ):
                    sizes.append(pixels.shape[:2])
                    file.write(np.ascontiguousarray(pixels).data)
                    if error is not None:
                        errors[place] = error
            os.replace(fresh, index.with_suffix(".u8"))
            fresh.write_text(json.dumps({"sizes": sizes, "errors": errors}), "utf-8")
            os.replace(fresh, index)
        finally:
            fresh.unlink(missing_ok=True)

    def _decoded(self, place: int) -> tuple[Pixels, str | None]:
        found = decoded(
            self.listing, int(self.order[place]), lambda image: np.asarray(self.shrunk(image))
        )
        return (np.empty((0, 0, 3), np.uint8), found) if isinstance(found, str) else (found, None)

    def _check_room(self, chunks: int, pool: ThreadPool) -> None:
        places = torch.linspace(0, len(self.order) - 1, min(SAMPLE, len(self.order))).long()
        sample = [pixels.nbytes for pixels, _ in pool.imap(self._decoded, places.tolist())]
        images = min(chunks * self.chunk, len(self.order))
        needed = images * sum(sample) / len(sample)
        free = shutil.disk_usage(self.directory).free
        if needed > 0.95 * free:
            raise ValueError(
                f"data.cache: decoding {images} images needs about {needed / 1e9:.3g} GB in "
                f"{self.directory}, where {free / 1e9:.3g} GB are free; set data.cache to a larger "
                "disk, data.stored to fewer pixels, or data.stored=files to decode each time"
            )


def _remove_if_forsaken(path: Path) -> None:
    """A file that a killed process had begun; one that is being written grows all the time."""
    with suppress(FileNotFoundError):  # another process may be as tidy
        if time.time() - path.stat().st_mtime > FORSAKEN_SECONDS:
            path.unlink()


def decoded(listing: Listing, place: int, made: Callable[[Image.Image], Pixels]) -> Pixels | str:
    """What `made` makes of an image in 8 bits and three channels; or why it cannot be read.

    Raises ValueError for an image of another size than the listing knows.
    """
    try:
        with Image.open(listing.paths[place]) as image:
            size, pixels = image.size, made(plain(image, grey=False))
    except UNREADABLE as error:
        return str(error) or type(error).__name__
    listing.check_size(place, size)
    return pixels


def no_larger(side: int) -> Callable[[Image.Image], Image.Image]:
    """The shorter side made `side` pixels (bicubic, as Wong 2020's code); none is enlarged."""

    def shrunk(image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        if shorter <= side:
            return image
        width, height = (round(side * length / shorter) for length in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    return shrunk


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"decoded images cannot be kept in {directory} ({error.strerror}); set data.cache to a "
            "directory where there is room, or data.stored=files to decode each time"
        ) from error
