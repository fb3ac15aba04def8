"""Data by name: `load`."""

import contextlib
import difflib
import fcntl
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gratis.data.detection import load_coco
from gratis.data.folder import load_folder
from gratis.data.images import Images
from gratis.data.users import load_users

# torchvision's class for each name, and what it expects below its root.
TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "fashion-mnist": (
        "FashionMNIST",
        "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    ),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"),
    "cifar100": ("CIFAR100", "cifar-100-python/{train,test,meta}"),
}
NAMES = ("digits", *TORCHVISION, "folder", "coco")
SILENCE_SECONDS = 30  # after which a server that says nothing is given up


def load(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    resize: int | None = None,
) -> Images:
    """The `split`, "train" or "test", of a data set, whole and in memory.

    name: `digits` (scikit-learn's 1797 8x8 grey images, 500 of them for the test; needs no
    file), `mnist`, `fashion-mnist`, `cifar10`, `cifar100` (by torchvision, downloaded where
    absent), `folder` (image files, see `load_folder`; in a fixed shuffled order), `coco` (boxes
    in COCO's layout, see `load_coco`) or `module:function` (yours, see `load_users`).
    root: where the files are; else $GRATIS_DATA. For torchvision's it is the directory that
    torchvision takes, for a folder the one that holds `train`, for coco `annotations`.
    image_size: what the images of a folder or PIL images are resized and cropped to, and those
    of coco fitted into.
    resize: of a folder, see `decoding.cropped`.

    Raises ValueError for an unknown name or split, data that is not there, or data that
    `Images` refuses.
    """
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r}; there are 'train' and 'test'")
    if ":" in name:
        images = load_users(name, split, _root_if_given(root), image_size)
    elif name == "digits":
        images = _digits(split)
    elif name in TORCHVISION:
        images = _torchvision(name, split, root_of(name, root))
    elif name == "folder":
        images = _shuffled(load_folder(root_of(name, root), split, image_size, resize))
    elif name == "coco":
        images = load_coco(root_of(name, root), split, image_size)
    else:
        nearest = difflib.get_close_matches(name, NAMES, n=1)
        raise ValueError(
            f"there is no data set {name!r}"
            + (f"; did you mean {nearest[0]!r}?" if nearest else ".")
            + f" Known: {', '.join(NAMES)}, module:function"
        )
    height, width = images.x.shape[2:]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise ValueError(
            f"image_size is {image_size} and the images of {name} are {height}x{width}; "
            "only files of a folder and PIL images are resized: leave image_size out"
        )
    return images


def _shuffled(images: Images) -> Images:
    """The images in a fixed order at random: files come class by class, and whoever looks at
    the first thousand should see every class.
    """
    return images.select(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)))


def _root_if_given(root: str | Path | None) -> Path | None:
    given = root or os.environ.get("GRATIS_DATA")
    return Path(given).expanduser() if given else None


def root_of(name: str, root: str | Path | None) -> Path:
    """The directory of a data set; ValueError if none is given or there."""
    path = _root_if_given(root)
    if path is None:
        raise ValueError(
            f"where do the files of data.name={name} lie? Give their directory as data.root=DIR "
            "(root= in Python), or in the environment variable GRATIS_DATA"
        )
    if not path.is_dir():
        raise ValueError(f"the root {path} of {name} is no directory; make it or give another")
    return path


def _digits(split: str) -> Images:
    from sklearn.datasets import load_digits  # takes seconds to import

    bunch = load_digits()
    # The legacy generator: its stream never changes, so neither does what is in the test set.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    rows = order[:1297] if split == "train" else order[1297:]
    grey = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)
    return Images(
        x=torch.from_numpy(grey).unsqueeze(1),
        y=torch.from_numpy(bunch.target[rows]).long(),
        classes=tuple(str(c) for c in bunch.target_names),
        name="digits",
        split=split,
    )


def _torchvision(name: str, split: str, root: Path) -> Images:
    dataset = _opened(name, split, root)
    x = torch.as_tensor(dataset.data)  # [N, H, W] or [N, H, W, 3]; no image goes through PIL
    return Images(
        x=x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous(),
        y=torch.as_tensor(dataset.targets).long(),
        classes=tuple(dataset.classes),
        name=name,
        split=split,
    )


def _opened(name: str, split: str, root: Path) -> Any:
    import torchvision.datasets as datasets  # slow to import

    class_name, layout = TORCHVISION[name]
    dataset = getattr(datasets, class_name)
    train = split == "train"
    try:
        return dataset(str(root), train=train, download=False)
    except RuntimeError:  # torchvision's word for "not there"
        pass
    try:
        with _alone(root), _quietly():
            return dataset(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        raise ValueError(
            f"{name} is not in {root} and could not be downloaded ({reason}); "
            f"needed is {root}/{layout}: put it there, or give another place as data.root "
            "(root= in Python) or in the environment variable GRATIS_DATA"
        ) from error


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time: of those of a further machine none goes first, and archives that
    several write at once are corrupted. The others find it downloaded.
    """
    with (root / ".gratis-download").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: as if alone
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torchvision's progress bars, and without its endless wait for a silent server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
