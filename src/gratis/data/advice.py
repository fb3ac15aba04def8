"""What to tell a user whose tree of image files is not as it must be: what lies there instead."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

SHOWN = 5  # names in an error; more do not help
DEPTH = 3  # levels below a root: ImageNet's archive has ILSVRC/Data/CLS-LOC/train
MOST_FOLDERS, MOST_ENTRIES = 300, 2000  # looked at, and in each: a search must end soon
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


def some(names: Sequence[str]) -> str:
    """The first few of many names, and how many there are beside them."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def class_folders(directory: Path) -> tuple[str, ...]:
    """The folders in `directory`, sorted. Hidden ones are a notebook's or a system's."""
    return tuple(sorted(entry.name for entry in _folders(directory)))


def has_folder(directory: Path) -> bool:
    return any(True for _ in _folders(directory))


def _folders(directory: Path, most: int | None = None) -> "Iterator[os.DirEntry[str]]":
    with os.scandir(directory) as entries:
        for entry in islice(entries, most):
            if not entry.name.startswith(".") and entry.is_dir():
                yield entry


def no_split(root: Path, names: Sequence[str]) -> str:
    """For a root that lacks all of the folders `names`."""
    said = (
        f"{root} has no folder {' or '.join(names)}; needed are {root}/train/CLASS/* and "
        f"{root}/test/CLASS/* (or val for test), the same class folders in both"
    )
    there = class_folders(root)
    if {"train", "test", "val"} & set(there):
        return f"{said}; it has {some(there)}"
    if others := _roots_nearby(root):
        which = "it" if len(others) == 1 else "the right one"
        return f"{said}; they are in {some(others)}: give {which} as data.root"
    return said + (f"; it has {some(there)}" if there else "") + ": check the root"


def _roots_nearby(root: Path) -> list[str]:
    """Roots above or below the one that was given."""
    above = root.resolve().parents[:2]
    return [str(directory) for directory in (*above, *_below(root)) if _is_root(directory)]


def _is_root(directory: Path) -> bool:
    splits = (directory / name for name in ("val", "test"))
    return (directory / "train").is_dir() and any(split.is_dir() for split in splits)


def _below(root: Path) -> list[Path]:
    """Folders below the root, those on the highest level first."""
    found: list[Path] = []
    level = [root]
    for _ in range(DEPTH):
        room = MOST_FOLDERS - len(found)
        level = [
            directory / name
            for directory in level[:room]
            if os.access(directory, os.R_OK | os.X_OK)
            for name in sorted(entry.name for entry in _folders(directory, MOST_ENTRIES))
        ]
        found += level[:room]
    return found


def too_few_classes(directory: Path, extensions: Sequence[str]) -> str:
    """For a folder of a split that has no two class folders."""
    classes = class_folders(directory)
    said = (
        f"{directory} has {len(classes)} class folder{'' if len(classes) == 1 else 's'}"
        + (f" ({classes[0]})" if classes else "")
        + "; two or more are needed, each with the images of one class"
    )
    files = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    archives = [name for name in files if name.lower().endswith(ARCHIVES)]
    images = [name for name in files if name.lower().endswith(tuple(extensions))]
    if archives:
        return (
            f"{said}; it holds archives, {some(archives)}: unpack each into a folder of that name"
        )
    if images:
        return (
            f"{said}; it holds images in no class folder, {some(images)}: move each to "
            f"{directory}/CLASS/{_where_classes_are_told(images[0])}"
        )
    return said


def _where_classes_are_told(name: str) -> str:
    if not name.startswith("ILSVRC2012_val_"):
        return ""
    return (
        ". Their names do not tell the class, but ImageNet's LOC_val_solution.csv or its "
        "development kit does: docs/imagenet.md has the commands"
    )
