"""Test images from another distribution: the benchmarks' folders, taken apart into cells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gratis.data.cells import ArrayCell, Cell, FileCell, GeneratedCell, Reading
from gratis.data.corruptions import (
    COMMON,
    EXTRA,
    PACKAGE,
    SEVERITIES,
    check_size,
    chosen,
    library,
    makers,
)
from gratis.data.images import Images
from gratis.data.shift_files import (
    array_of,
    check_cifars,
    check_classes,
    check_known,
    class_folders,
    files_of,
    some_of,
)

GROUPS = ("noise", "blur", "weather", "digital", "extra")
"""What ImageNet-C is packed as: the corruptions lie in ROOT, or in these folders of it."""

COMPLETE = {
    **{"imagenet-c": 50_000, "stylized": 50_000, "imagenet-r": 30_000},
    **{"cifar10-c": 10_000, "cifar100-c": 10_000},
}
"""Images of a cell."""

IMAGENET_R_CLASSES = 200
CIFAR_CLASSES = {"cifar10-c": 10, "cifar100-c": 100}
CIFAR_SHAPE = (32, 32, 3)


@dataclass(frozen=True)
class Asked:
    """What a run is to be evaluated on.

    name: imagenet-c, cifar10-c, cifar100-c, imagenet-r, stylized or corruptions.  root: where its
    files lie; None for corruptions, which are made from the run's own test images.
    corruptions: 15 or 19 of them, at `severities`; for the first three and the last.
    limit: images of a cell.  partial: whether what lacks is left out, or refused.
    """

    name: str
    root: Path | None = None
    corruptions: int = len(COMMON)
    severities: tuple[int, ...] = SEVERITIES
    limit: int | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        if self.corruptions not in (len(COMMON), len(COMMON + EXTRA)):
            raise ValueError(
                f"corruptions={self.corruptions}: there are 15 corruptions, 19 with the extra ones"
            )
        known = set(self.severities) <= set(SEVERITIES)
        if not self.severities or not known or len(set(self.severities)) < len(self.severities):
            raise ValueError(
                f"severities {list(self.severities)}: give some of 1 to 5, each of them once"
            )

    @property
    def grid(self) -> list[tuple[str, int]]:
        """Every corruption at every severity that is asked for."""
        return list(product(chosen(self.corruptions), sorted(self.severities)))


@dataclass(frozen=True, eq=False)
class Shift:
    """What was found.  cells: all of one size, but where `partial` was asked for.
    columns: the run's classes that it is about, where these are not all (ImageNet-R).
    partial: how it falls short of the whole benchmark, in words.  lacking: not by request.
    about: where the images come from, how they are read.
    """

    name: str
    cells: tuple[Cell, ...]
    about: dict[str, Any]
    partial: tuple[str, ...] = ()
    lacking: bool = False
    columns: Tensor | None = field(default=None, repr=False)


@contextmanager
def opened(asked: Asked, images: Images, resize: int | None) -> Iterator[Shift]:
    """The cells of the shift that is asked for, none of which is read yet.

    images: the run's clean test images, the first `limit` of them for generated corruptions; of
    the others, only shape and classes count.  resize: the run's data.test_resize.

    Raises ValueError where folders, classes, numbers of images or the kind of array are not the
    benchmark's, with `partial` only for what then cannot be used at all.
    """
    if asked.root is not None and not asked.root.is_dir():
        raise ValueError(f"--shift {asked.name}: {asked.root} is no directory")
    if asked.name == "corruptions":
        check_size(*images.pixels(slice(0, 1)).shape[1:])
        version = library()
        cells = len(asked.grid)
        with makers(images.pixels(slice(0, 1))[0, 0].numel() * len(images) * cells) as pool:
            yield _generated(asked, images, version, pool)
    elif asked.name in CIFAR_CLASSES:
        yield _cifar_c(asked, images)
    elif asked.name == "imagenet-c":
        yield _imagenet_c(asked, images)
    else:
        yield _renditions(asked, images, resize)


# --- each benchmark


def _generated(asked: Asked, images: Images, version: str, pool: Any) -> Shift:
    height, width = images.pixels(slice(0, 1)).shape[2:]
    about = {
        "source": "generated",
        "library": PACKAGE,
        "version": version,
        "image_size": [height, width],
        "preprocessing": f"the run's {images.split} images of {images.name}, corrupted at "
        f"{height}x{width} px",
    }
    cells = tuple(GeneratedCell(*how, images, pool) for how in asked.grid)
    return Shift(asked.name, cells, about, _restricted(asked))


def _cifar_c(asked: Asked, images: Images) -> Shift:
    """ROOT/CORRUPTION.npy: five severities of the same images one after the other; labels.npy."""
    root = asked.root
    assert root is not None
    classes = CIFAR_CLASSES[asked.name]
    if len(images.classes) != classes:
        raise ValueError(f"{asked.name} has {classes} classes, the run {len(images.classes)}")
    shape = tuple(images.pixels(slice(0, 1)).shape[1:])
    if shape != (3, 32, 32):
        raise ValueError(
            f"{asked.name} has colour images of 32x32, the run's are {shape[1]}x{shape[2]} with "
            f"{shape[0]} channels; they are not resized: evaluate a run on CIFAR's own size"
        )
    check_cifars(asked.name, images.classes)
    names = chosen(asked.corruptions)
    lacking = [name for name in names if not (root / f"{name}.npy").is_file()]
    if not (root / "labels.npy").is_file():
        raise ValueError(f"{root} has no labels.npy: the labels of all five severities")
    labels = torch.from_numpy(array_of(root / "labels.npy", None).astype(np.int64))
    per = len(labels) // len(SEVERITIES)
    if labels.ndim != 1 or not per or len(labels) != per * len(SEVERITIES):
        raise ValueError(
            f"{root / 'labels.npy'} has shape {list(labels.shape)}; needed is [50000], 10000 "
            "labels for each of five severities"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"{root / 'labels.npy'}: labels must lie between 0 and {classes - 1}")
    cells: list[Cell] = []
    count = min(per, asked.limit or per)
    for name in names:
        if name in lacking:
            continue
        rows = array_of(root / f"{name}.npy", (len(labels), *CIFAR_SHAPE))
        for severity in sorted(asked.severities):
            part = slice((severity - 1) * per, (severity - 1) * per + count)
            cells.append(ArrayCell(name, severity, rows[part], labels[part]))
    short = _lacks([f"{name}.npy" for name in lacking])
    return _benchmark(asked, cells, short, [per], "as stored")


def _imagenet_c(asked: Asked, images: Images) -> Shift:
    """ROOT/[GROUP/]CORRUPTION/SEVERITY/CLASS/*, of 224 pixels a side already."""
    root = asked.root
    assert root is not None
    channels, height, width = images.pixels(slice(0, 1)).shape[1:]
    if height != width:
        raise ValueError(f"the run's test images are {height}x{width}; squares are needed")
    reading = Reading(channels == 1, height, resize=0, enlarge=False)
    cells: list[Cell] = []
    lacking, counts = [], []
    for name, severity in asked.grid:
        directory = _corruption(root, name) / str(severity)
        if not directory.is_dir():
            lacking.append(f"{name}/{severity}")
            continue
        check_classes(directory, images.classes)
        cell = _file_cell(name, severity, directory, images.classes, images, reading, asked)
        counts.append(cell.count)
        cells.append(cell)
    return _benchmark(asked, cells, _lacks(lacking), counts, reading.in_words())


def _renditions(asked: Asked, images: Images, resize: int | None) -> Shift:
    """ImageNet-R, ROOT/CLASS/* of some classes; or Stylized-ImageNet, ROOT/val/CLASS/* of all."""
    assert asked.root is not None
    channels, height, _ = images.pixels(slice(0, 1)).shape[1:]
    reading = Reading(channels == 1, height, resize)
    some = asked.name == "imagenet-r"
    directory = asked.root if some else asked.root / "val"
    if not directory.is_dir():
        raise ValueError(f"--shift {asked.name}: needed is {directory}/CLASS/*; it is not there")
    folders = class_folders(directory)
    short = []
    if some:
        check_known(directory, folders, images.classes)
        if len(folders) != IMAGENET_R_CLASSES:
            short.append(f"has {len(folders)} class folders in place of {IMAGENET_R_CLASSES}")
    else:
        check_classes(directory, images.classes)
    cell = _file_cell(asked.name, 0, directory, folders, images, reading, asked)
    columns = torch.unique(cell.classes) if some else None
    return _benchmark(asked, [cell], short, [cell.count], reading.in_words(), columns)


def _benchmark(
    asked: Asked,
    cells: Sequence[Cell],
    short: list[str],
    counts: Sequence[int],
    preprocessing: str,
    columns: Tensor | None = None,
) -> Shift:
    """ValueError where anything lacks that was not agreed to.  short: what is known to."""
    complete = COMPLETE[asked.name]
    if any(count != complete for count in counts):
        least, most = min(counts), max(counts)
        found = str(least) if least == most else f"{least} to {most}"
        short = [*short, f"has {found} images a cell in place of {complete}"]
    if not cells or (short and not asked.partial):
        raise ValueError(
            f"--shift {asked.name}: {asked.root} {' and '.join(short)}"
            + ("; --partial evaluates what there is and says so" if cells else "")
        )
    about = {"source": str(asked.root), "preprocessing": preprocessing}
    said = (*short, *_restricted(asked))
    return Shift(asked.name, tuple(cells), about, said, bool(short), columns)


def _lacks(names: Sequence[str]) -> list[str]:
    return [f"lacks {some_of(names)}"] if names else []


def _restricted(asked: Asked) -> tuple[str, ...]:
    """How the question itself asks for less than the benchmark."""
    said = []
    if len(asked.severities) < len(SEVERITIES) and asked.name not in ("imagenet-r", "stylized"):
        said.append(f"severities {', '.join(map(str, sorted(asked.severities)))} alone")
    if asked.limit is not None:
        said.append(f"at most {asked.limit} images a cell")
    return tuple(said)


def _corruption(root: Path, name: str) -> Path:
    for directory in (root / name, *(root / group / name for group in GROUPS)):
        if directory.is_dir():
            return directory
    return root / name


def _file_cell(
    corruption: str,
    severity: int,
    directory: Path,
    folders: Sequence[str],
    images: Images,
    reading: Reading,
    asked: Asked,
) -> FileCell:
    listed = partial(files_of, directory, tuple(folders))
    found = listed()
    counts = torch.bincount(found.labels, minlength=len(folders)).tolist()
    if empty := [name for name, count in zip(folders, counts, strict=True) if not count]:
        raise ValueError(f"{directory} has class folders without an image: {some_of(empty)}")
    place = {name: i for i, name in enumerate(images.classes)}
    classes = torch.tensor([place[name] for name in folders])
    count = len(found.paths)
    return FileCell(corruption, severity, directory, count, listed, classes, reading, asked.limit)
