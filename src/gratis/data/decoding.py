"""From image files to pixels, with Pillow and numpy alone.

This file is also the program of processes that decode for another one (`look_at`): most of the time
that a small image takes is Python's, which threads cannot share out. They are begun as programs,
not as copies of this process or of its script, and import nothing of the package.
"""

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

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
FILES_A_PROCESS = 4096
"""Worth a process: the work of half a second, of which beginning one takes a third."""

Pixels = npt.NDArray[np.uint8]


class Look(NamedTuple):
    """Size and kind of an image; its pixels [C, H, W] if it is small: to open it again would take
    as long.
    """

    width: int
    height: int
    grey: bool
    pixels: Pixels | None = None


def look(path: str | Path) -> Look | str:
    """What `path` holds, read no further than for a Look; of a damaged file, what is wrong."""
    try:
        with Image.open(path) as image:
            grey = is_grey(image)
            small = image.size[0] * image.size[1] <= SMALL_PIXELS
            return Look(*image.size, grey, to_array(image, grey, None) if small else None)
    except UNREADABLE as error:
        return str(error)


def look_at(paths: Sequence[Path]) -> list[Look | str]:
    """`look` at each, in order; where they are many, in a process for each core, 8 at most."""
    count = min(8, os.cpu_count() or 1, len(paths) // FILES_A_PROCESS)
    if count < 2:
        return [look(path) for path in paths]
    bounds = [len(paths) * place // count for place in range(count + 1)]
    parts = [paths[first:last] for first, last in pairwise(bounds)]
    with ThreadPool(count) as pool:
        return [found for part in pool.map(_look_elsewhere, parts) for found in part]


def _look_elsewhere(paths: Sequence[Path]) -> list[Look | str]:
    """By a process of its own; by this one where there can be none."""
    asked = pickle.dumps([str(path) for path in paths])
    try:
        command = [sys.executable, "-P", __file__]
        done = subprocess.run(command, input=asked, capture_output=True, check=True)
        found = pickle.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, pickle.UnpicklingError, EOFError):
        return [look(path) for path in paths]
    return [one if isinstance(one, str) else Look(*one) for one in found]


def is_grey(image: Image.Image) -> bool:
    """Whether the image has no colours, by its mode."""
    return image.mode in ("1", "L", "LA", "I;16", "I;16L", "I;16B")


def to_array(
    image: Image.Image, grey: bool, image_size: int | None, resize: int | None = None
) -> Pixels:
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


def _look_for_another() -> None:
    """The program: paths come in, what each holds goes out, as plain values."""
    found = [look(path) for path in pickle.load(sys.stdin.buffer)]
    plain_values = [one if isinstance(one, str) else tuple(one) for one in found]
    pickle.dump(plain_values, sys.stdout.buffer)


if __name__ == "__main__":
    _look_for_another()
