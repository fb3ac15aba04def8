"""Image files in folders: ROOT/train/CLASS/* and ROOT/test/CLASS/* (or ROOT/val), decoded once."""

import os
import struct
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from gratis.data.images import Images, different_classes

# What a reader of figures must be told about a folder of this name.
NOTES = {
    "cifar10-jpeg": "figures are on JPEG-recompressed CIFAR-10, a stand-in; "
    "they are not comparable with published CIFAR-10 figures",
}
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
MOST_SKIPPED = 0.1  # the share of unreadable files beyond which the folder itself must be wrong


class _Header(NamedTuple):
    width: int
    height: int
    grey: bool


def load_folder(root: Path, split: str, image_size: int | None) -> Images:
    """Every image below ROOT/split/CLASS as one uint8 tensor; grey only if all of them are.

    image_size: resize the shorter side to it and crop the centre; without it all images must
    have one size. Files without an image's extension are ignored, damaged ones end up in
    `Images.skipped`.

    Raises ValueError for a missing or empty folder or class, fewer than two classes, classes
    that differ between the splits, differing image sizes, or too many damaged files.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # slow to import

    directory = _split_directory(root, split)
    classes = _classes(root, split, directory)
    index = {name: i for i, name in enumerate(classes)}
    files = make_dataset(directory, index, IMG_EXTENSIONS, allow_empty=True)
    if not files:
        raise ValueError(
            f"{directory} holds no image below its class folders; "
            f"files ending in {', '.join(IMG_EXTENSIONS)} are read"
        )
    paths, labels = [Path(path) for path, _ in files], torch.tensor([label for _, label in files])
    _check_no_class_empty(directory, classes, labels)

    errors: dict[Path, str] = {}
    small: dict[Path, npt.NDArray[np.uint8]] = {}
    # Large images decode in parallel (Pillow lets go of the lock); with small ones threads cost
    # more than they bring, and the first image tells which these are.
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        first = _header(paths[0], errors, small)
        each = map if small else partial(pool.imap, chunksize=64)
        others = each(lambda path: _header(path, errors, small), paths[1:])
        headers = dict(zip(paths, [first, *others], strict=True))
        _check_skipped(directory, errors, len(paths))
        known = {path: header for path, header in headers.items() if header is not None}
        height, width = _common_size(known) if image_size is None else (image_size, image_size)
        grey = all(header.grey for header in known.values())
        x = np.zeros((len(paths), 1 if grey else 3, height, width), dtype=np.uint8)

        def decode(i: int) -> None:
            found = small.get(paths[i])
            if found is not None and found.shape[1:] == x.shape[2:]:
                x[i] = found  # a grey one into all three channels, if others have colours
                return
            try:
                with Image.open(paths[i]) as image:
                    x[i] = to_array(image, grey, image_size)
            except UNREADABLE as error:
                errors[paths[i]] = str(error)

        readable = [i for i, path in enumerate(paths) if path in known]
        pool.map(decode, readable, chunksize=64)
    _check_skipped(directory, errors, len(paths))
    kept = torch.tensor([path not in errors for path in paths])
    _check_no_class_empty(directory, classes, labels[kept])
    name = root.resolve().name
    return Images(
        x=torch.from_numpy(x) if not errors else torch.from_numpy(x)[kept],
        y=labels[kept],
        classes=classes,
        name=name,
        split=split,
        note=NOTES.get(name),
        skipped=tuple(str(path.relative_to(root)) for path in sorted(errors)),
    )


def is_grey(image: Image.Image) -> bool:
    """Whether the image has no colours, by its mode."""
    return image.mode in ("1", "L", "LA", "I;16", "I;16L", "I;16B")


def to_array(image: Image.Image, grey: bool, image_size: int | None) -> npt.NDArray[np.uint8]:
    """A PIL image -> uint8 [C, H, W], C = 1 if `grey`, else 3 (transparency is dropped).

    image_size: resize the shorter side to it (bilinear) and crop the centre.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); 8 or 16 are read")
    image = image.convert("L" if grey else "RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _split_directory(root: Path, split: str) -> Path:
    names = ("train",) if split == "train" else ("test", "val")
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ValueError(
        f"{root} has no folder {' or '.join(names)}; needed are {root}/train/CLASS/*.png and "
        f"{root}/test/CLASS/*.png (or val for test): check the root"
    )


def _classes(root: Path, split: str, directory: Path) -> tuple[str, ...]:
    """The class folders of `directory`, the same as those of the other split if that is there."""
    classes = _class_folders(directory)
    if len(classes) < 2:
        raise ValueError(
            f"{directory} has {len(classes)} class folders"
            + (f" ({classes[0]})" if classes else "")
            + "; two or more are needed, each with the images of one class"
        )
    try:
        other = _split_directory(root, "test" if split == "train" else "train")
    except ValueError:
        return classes
    if (others := _class_folders(other)) != classes:
        raise ValueError(
            f"{root}: the class folders of the splits differ, so labels would not mean the same: "
            + different_classes(directory.name, classes, other.name, others)
        )
    return classes


def _class_folders(directory: Path) -> tuple[str, ...]:
    # Hidden folders are a notebook's or a system's, never a class.
    entries = (entry for entry in directory.iterdir() if not entry.name.startswith("."))
    return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def _check_no_class_empty(directory: Path, classes: Sequence[str], labels: torch.Tensor) -> None:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise ValueError(
            f"{directory} has class folders without a readable image: {', '.join(empty)}; "
            "fill them or take them away"
        )


def _check_skipped(directory: Path, errors: dict[Path, str], count: int) -> None:
    if len(errors) > MOST_SKIPPED * count:
        some = "; ".join(f"{path}: {errors[path]}" for path in sorted(errors)[:3])
        raise ValueError(
            f"{len(errors)} of {count} files in {directory} cannot be read as images "
            f"(up to {MOST_SKIPPED:.0%} are skipped): {some}"
        )


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
