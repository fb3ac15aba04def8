"""Image files in folders: ROOT/train/CLASS/* and ROOT/test/CLASS/* (or ROOT/val), decoded once."""

import math
import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gratis.data.decoding import UNREADABLE, Look, look, look_at, to_array
from gratis.data.images import Images
from gratis.data.listing import listed
from gratis.data.scenes import room


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
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        looks = dict(zip(paths, _looks(paths, pool), strict=True))
        errors = {path: found for path, found in looks.items() if isinstance(found, str)}
        listing.check_skipped(errors)
        known = {path: found for path, found in looks.items() if not isinstance(found, str)}
        height, width = _common_size(known) if image_size is None else (image_size, image_size)
        grey = all(found.grey for found in known.values())
        shape = (len(paths), 1 if grey else 3, height, width)
        _check_memory(shape, root)
        x = np.zeros(shape, dtype=np.uint8)

        def decode(i: int) -> None:
            found = known[paths[i]].pixels
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


def _check_memory(shape: tuple[int, int, int, int], root: Path) -> None:
    """ValueError where so many images of uint8 do not fit into the machine's memory."""
    needed, left = math.prod(shape), room()
    if needed > left:
        raise ValueError(
            f"{root}: {shape[0]:,} images of {shape[2]}x{shape[3]} pixels need "
            f"{needed / 2**30:.1f} GiB, and this machine has {left / 2**30:.1f} GiB for them; set "
            "data.stored=SIDE to have them decoded once and streamed, or a smaller data.image_size"
        )


def _looks(paths: Sequence[Path], pool: ThreadPool) -> list[Look | str]:
    """Large images are read in parallel (Pillow lets go of the lock); with small ones threads cost
    more than they bring, and the first image tells which these are.
    """
    first = look(paths[0])
    if isinstance(first, str) or first.pixels is None:
        return [first, *pool.imap(look, paths[1:], chunksize=64)]
    return [first, *look_at(paths[1:])]


def _common_size(looks: dict[Path, Look]) -> tuple[int, int]:
    """(height, width) of all; ValueError names two files that differ."""
    first = next(iter(looks))
    for path, found in looks.items():
        if found[:2] != looks[first][:2]:
            sizes = [f"{p} is {looks[p].width}x{looks[p].height}" for p in (first, path)]
            raise ValueError(
                f"the images differ in size: {' and '.join(sizes)}; give data.image_size, "
                "to which the shorter side is resized before a crop of the centre"
            )
    return looks[first].height, looks[first].width
