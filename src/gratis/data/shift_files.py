"""What lies in a benchmark's folder: class folders, image files, arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gratis.data.cells import Files

CIFAR_ENDS = {"cifar10-c": ("airplane", "truck"), "cifar100-c": ("apple", "worm")}
CIFAR_ALIASES = {"plane": "airplane", "car": "automobile"}
"""Names of some classes elsewhere."""

NAMED = 5
"""Of a long list, as many are named in an error."""


def array_of(path: Path, shape: tuple[int, ...] | None) -> Any:
    """An array of integers that stays on the disk until it is used."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no file of numpy's: {error}") from error
    if shape is not None and (array.dtype != np.uint8 or array.shape != shape):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {list(array.shape)}; needed is uint8 of shape "
            f"{list(shape)}, pixels from 0 to 255"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{path} holds {array.dtype}; whole numbers are needed")
    return array


def files_of(directory: Path, folders: tuple[str, ...]) -> Files:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # slow to import

    index = {name: i for i, name in enumerate(folders)}
    files = make_dataset(directory, index, IMG_EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Files([Path(path) for path, _ in files], labels)


def class_folders(directory: Path) -> tuple[str, ...]:
    # Hidden folders are a notebook's or a system's, never a class.
    entries = (entry for entry in directory.iterdir() if not entry.name.startswith("."))
    return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def check_known(directory: Path, folders: Sequence[str], classes: Sequence[str]) -> None:
    if unknown := sorted(set(folders) - set(classes)):
        raise ValueError(
            f"{directory} has class folders that are none of the run's {len(classes)} classes "
            f"({some_of(classes)}): {some_of(unknown)}; they must have the names of the run's"
        )


def check_classes(directory: Path, classes: Sequence[str]) -> None:
    """ValueError unless the class folders are the run's classes."""
    folders = class_folders(directory)
    check_known(directory, folders, classes)
    if lacking := sorted(set(classes) - set(folders)):
        raise ValueError(
            f"{directory} has {len(folders)} class folders, the run {len(classes)} classes; "
            f"there is none for {some_of(lacking)}"
        )


def some_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_cifars(name: str, classes: Sequence[str]) -> None:
    """ValueError for classes that are not those of CIFAR's labels, as far as their names tell."""
    own = [CIFAR_ALIASES.get(each, each) for each in classes]
    ends = CIFAR_ENDS[name]
    named = not all(each.isdecimal() for each in own)
    if named and (own != sorted(own) or (own[0], own[-1]) != ends):
        raise ValueError(
            f"{name}: labels.npy counts CIFAR's classes from {ends[0]} to {ends[1]}, in the "
            f"order of the alphabet; the run's are {', '.join(classes[:3])}, ... {classes[-1]}: "
            "name them as CIFAR does, or by their numbers there"
        )
