"""The image files of a split; those below ROOT/train/CLASS and ROOT/test/CLASS (or ROOT/val)."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from torch import Tensor

from gratis.data.advice import class_folders, has_folder, no_split, some, too_few_classes
from gratis.data.images import different_classes

# What a reader of figures must be told about a folder of this name.
NOTES = {
    "cifar10-jpeg": "figures are on JPEG-recompressed CIFAR-10, a stand-in; "
    "they are not comparable with published CIFAR-10 figures",
}
MOST_SKIPPED = 0.1  # the share of unreadable files beyond which the folder itself must be wrong


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of one split, below `directory`; what is in them is for kinds of listing."""

    root: Path
    split: str
    directory: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def note(self) -> str | None:
        return NOTES.get(self.name)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files' names below the root and their sizes in bytes, 64 hex digits."""
        with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
            sizes = pool.map(os.path.getsize, self.paths, chunksize=256)
        digest = hashlib.sha256()
        for path, size in zip(self.paths, sizes, strict=True):
            digest.update(f"{path.relative_to(self.root)}\0{size}\n".encode())
        return digest.hexdigest()

    def check_size(self, place: int, size: tuple[int, int]) -> None:
        """ValueError where the image at `place` must have another size: (width, height)."""

    def check_skipped(self, errors: Mapping[Path, str]) -> None:
        """ValueError where too many files could not be read: path -> why."""
        if len(errors) > MOST_SKIPPED * len(self):
            first = "; ".join(f"{path}: {errors[path]}" for path in sorted(errors)[:3])
            raise ValueError(
                f"{len(errors)} of {len(self)} files in {self.directory} cannot be read as images "
                f"(up to {MOST_SKIPPED:.0%} are skipped): {first}; fetch or unpack them anew"
            )

    def skipped(self, errors: Mapping[Path, str]) -> tuple[str, ...]:
        """The names below the root of files that could not be read."""
        return tuple(str(path.relative_to(self.root)) for path in sorted(errors))


@dataclass(frozen=True, eq=False)
class ClassFolders(Listing):
    """Files class by class, each with its class index in labels [N]."""

    labels: Tensor

    def check_skipped(self, errors: Mapping[Path, str]) -> None:
        """ValueError where too many files, or all of a class, could not be read: path -> why."""
        super().check_skipped(errors)
        kept = torch.tensor([path not in errors for path in self.paths])
        _check_no_class_empty(self.directory, self.classes, self.labels[kept])


def listed(root: Path, split: str) -> ClassFolders:
    """What lies below ROOT/split/CLASS. Files without an image's extension are ignored.

    Raises ValueError for a missing or empty folder or class, fewer than two classes, or classes
    that differ between the splits.
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
    return ClassFolders(root, split, directory, classes, tuple(paths), labels)


def _split_directory(root: Path, split: str) -> Path:
    names = ("train",) if split == "train" else ("test", "val")
    there = [root / name for name in names if (root / name).is_dir()]
    if not there:
        raise ValueError(no_split(root, names))
    # ImageNet's own `test` has images without labels, all in one folder
    return next(filter(has_folder, there), there[-1])


def _classes(root: Path, split: str, directory: Path) -> tuple[str, ...]:
    """The class folders of `directory`, the same as those of the other split if that is there."""
    classes = _two_or_more(directory)
    try:
        other = _split_directory(root, "test" if split == "train" else "train")
    except ValueError:
        return classes
    if (others := _two_or_more(other)) != classes:
        raise ValueError(
            f"{root}: the class folders of the splits differ, so labels would not mean the same: "
            + different_classes(directory.name, classes, other.name, others)
        )
    return classes


def _two_or_more(directory: Path) -> tuple[str, ...]:
    from torchvision.datasets.folder import IMG_EXTENSIONS  # slow to import

    classes = class_folders(directory)
    if len(classes) < 2:
        raise ValueError(too_few_classes(directory, IMG_EXTENSIONS))
    return classes


def _check_no_class_empty(directory: Path, classes: Sequence[str], labels: torch.Tensor) -> None:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise ValueError(
            f"{directory} has class folders without a readable image: {some(empty)}; "
            "fill them or take them away"
        )
