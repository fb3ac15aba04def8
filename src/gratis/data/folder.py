"""Image files in folders: ROOT/train/CLASS/* and ROOT/test/CLASS/* (or ROOT/val), decoded once."""

import os
import struct
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from gratis.data.images import Images
from gratis.data.listing import listed

# What Pillow's decoders raise on damaged files.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
SMALL_PIXELS = 128 * 128  # in images of up to so many, opening the file costs as much as decoding


class _Header(NamedTuple):
    width: int
    height: int
    grey: bool


def load_folder(
    root: Path, split: str, image_size: int | None, resize: int | None = None
) -> Images:
    """Every image below ROOT/split/CLASS as one uint8 tensor; grey only if all of them are.

    image_size, resize: as in `to_array`; without a size all images must have one. Files without
    an image's extension are ignored, damaged ones end up in `Images.skipped`.

    Raises ValueError for what `listed` refuses, differing image sizes, or too many damaged files.
    """
    listing = listed(root, split)
    paths = listing.paths
    errors: dict[Path, str] = {}
    small: dict[Path, npt.NDArray[np.uint8]] = {}
    # Large images decode in parallel (Pillow lets go of the lock); with small ones threads cost
    # more than they bring, and the first image tells which these are.
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        first = _header(paths[0], errors, small)
        each = map if small else partial(pool.imap, chunksize=64)
        others = each(lambda path: _header(path, errors, small), paths[1:])
        headers = dict(zip(paths, [first, *others], strict=True))
        listing.check_skipped(errors)
        known = {path: header for path, header in headers.items() if header is not None}
        height, width = _common_size(known) if image_size is None else (image_size, image_size)
        grey = all(header.grey for header in known.values())
        x = np.zeros((len(paths), 1 if grey else 3, height, width), dtype=np.uint8)

        def decode(i: int) -> None:
            found = small.get(paths[i])
            if found is not None and found.shape[1:] == x.shape[2:] and not resize:
                x[i] = found  # a grey one into all three channels, if others have colours
                return
            try:
                with Image.open(paths[i]) as image:
                    x[i] = to_array(image, grey, image_size, resize)
            except UNREADABLE as error:
                errors[paths[i]] = str(error)

        readable = [i for i, path in enumerate(paths) if path in known]
        pool.map(decode, readable, chunksize=64)
    listing.check_skipped(errors)
    kept = torch.tensor([path not in errors for path in paths])
    return Images(
        x=torch.from_numpy(x) if not errors else torch.from_numpy(x)[kept],
        y=listing.labels[kept],
        classes=listing.classes,
        name=listing.name,
        split=split,
        note=listing.note,
        skipped=listing.skipped(errors),
    )


def is_grey(image: Image.Image) -> bool:
    """Whether the image has no colours, by its mode."""
    return image.mode in ("1", "L", "LA", "I;16", "I;16L", "I;16B")


def to_array(
    image: Image.Image, grey: bool, image_size: int | None, resize: int | None = None
) -> npt.NDArray[np.uint8]:
    """A PIL image -> uint8 [C, H, W], C = 1 if `grey`, else 3 (transparency is dropped).

    image_size, resize: as in `cropped`; without a size neither.
    """
    image = plain(image, grey)
    if image_size is not None:
        image = cropped(image, image_size, resize)
    pixels = np.asarray(image)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def cropped(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """The centre, size x size pixels, of the image.

    resize: the shorter side is first resized to it (bilinear), as with 256 before a crop of 224:
    then pixel for pixel what torchvision's Resize and CenterCrop make; 0 leaves the image as
    large as it is unless it is smaller than the crop; None takes the largest square.
    """
    if resize is None:
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    shorter = min(image.size)
    wanted = max(size, resize or shorter)
    if wanted != shorter:
        width, height = (wanted * length // shorter for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    # rounded as torchvision rounds
    left, top = (round((length - size) / 2) for length in image.size)
    return image.crop((left, top, left + size, top + size))


def plain(image: Image.Image, grey: bool) -> Image.Image:
    """In 8 bits, with one channel if `grey`, else three."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); 8 or 16 are read")
    return image.convert("L" if grey else "RGB")


def _header(
    path: Path, errors: dict[Path, str], small: dict[Path, npt.NDArray[np.uint8]]
) -> _Header | None:
    """Size and kind of an image, read no further; a small one is decoded at once, into `small`:
    to open it again would take as long.
    """
    try:
        with Image.open(path) as image:
            header = _Header(*image.size, is_grey(image))
            if header.width * header.height <= SMALL_PIXELS:
                small[path] = to_array(image, header.grey, None)
            return header
    except UNREADABLE as error:
        errors[path] = str(error)
        return None


def _common_size(headers: dict[Path, _Header]) -> tuple[int, int]:
    """(height, width) of all; ValueError names two files that differ."""
    first = next(iter(headers))
    for path, header in headers.items():
        if header[:2] != headers[first][:2]:
            sizes = [f"{p} is {headers[p].width}x{headers[p].height}" for p in (first, path)]
            raise ValueError(
                f"the images differ in size: {' and '.join(sizes)}; give data.image_size, "
                "to which the shorter side is resized before a crop of the centre"
            )
    return headers[first].height, headers[first].width
