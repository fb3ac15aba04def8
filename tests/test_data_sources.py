"""A user's own data: folders of image files and `module:function`."""

import os
import sys
import threading
import time
import types
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from gratis.data import Images, load
from gratis.data.folder import load_folder


def colours(index: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of six colour images for training and of two for the test."""
    for part, count in (("train", 6), ("val", 2)):
        for i in range(count):
            write(tmp_path / part / "cat" / f"{i}.png", colours(i))
            write(tmp_path / part / "dog" / "old" / f"{i}.png", colours(100 + i))
    return tmp_path


def folder(root: Path, split: str = "train", **options: Any) -> Images:
    return load_folder(root, split, options.get("image_size"))


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_becomes_one_tensor_with_its_classes_in_order(root: Path) -> None:
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    training, test = folder(root), folder(root, "test")
    assert training.classes == test.classes == ("cat", "dog")
    assert training.y.tolist() == [0] * 6 + [1] * 6
    expected = [colours(i) for i in [*range(6), *range(100, 106)]]
    assert np.array_equal(training.x.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert (training.name, training.note, training.skipped) == (root.name, None, ())
    assert (len(test), test.split) == (4, "test")


def test_a_folder_comes_shuffled_in_a_fixed_order(root: Path) -> None:
    for i in range(6, 60):
        write(root / "train" / "cat" / f"{i}.png", colours(i))
        write(root / "train" / "dog" / "old" / f"{i}.png", colours(100 + i))
    in_order, shuffled = folder(root), load("folder", "train", root=root)
    assert 3 < shuffled.y[:20].sum() < 17  # the first twenty are of both classes
    assert torch.equal(shuffled.x, load("folder", "train", root=root).x)
    for label in (0, 1):
        mine, theirs = shuffled.x[shuffled.y == label], in_order.x[in_order.y == label]
        assert torch.equal(mine.flatten(1).sort(0).values, theirs.flatten(1).sort(0).values)


def test_grey_images_keep_one_channel_unless_one_has_colours(root: Path) -> None:
    for path in root.glob("train/**/*.png"):
        write(path, colours(0)[:, :, 0])
    deep = colours(0)[:, :, 0].astype(np.uint16) * 256 + 7
    write(root / "train" / "cat" / "0.png", deep)
    grey = folder(root)
    assert grey.x.shape == (12, 1, 8, 8)
    assert np.array_equal(grey.x[:, 0].numpy(), np.stack([colours(0)[:, :, 0]] * 12))
    write(root / "train" / "dog" / "old" / "3.png", colours(3))
    mixed = folder(root)
    assert mixed.x.shape == (12, 3, 8, 8)
    assert np.array_equal(mixed.x[9].permute(1, 2, 0).numpy(), colours(3))
    assert torch.equal(mixed.x[1], grey.x[1].expand(3, 8, 8))


def test_sizes_that_differ_need_an_image_size(root: Path) -> None:
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 200
    write(root / "train" / "dog" / "old" / "2.png", wide)
    with pytest.raises(ValueError, match=r"0\.png is 8x8 and .*2\.png is 16x8; give data\.image_"):
        folder(root)
    cropped = folder(root, image_size=8)
    assert cropped.x.shape == (12, 3, 8, 8)
    assert (cropped.x[8] == 200).all()  # the centre of the wide one, not squeezed
    assert np.array_equal(cropped.x[0].permute(1, 2, 0).numpy(), colours(0))
    assert (folder(root, image_size=4).x[8, :, :, 1:3] == 200).all()


def damage(path: Path, kind: str) -> None:
    if kind == "no image":
        path.write_bytes(b"no image")
    else:  # its header is fine, decoding fails
        path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("kind", ["no image", "cut off"])
def test_a_damaged_file_is_listed_and_left_out(root: Path, kind: str) -> None:
    before = folder(root)
    damage(root / "train" / "dog" / "old" / "1.png", kind)
    after = folder(root)
    assert after.skipped == ("train/dog/old/1.png",)
    kept = [i for i in range(12) if i != 7]
    assert torch.equal(after.x, before.x[kept])
    assert torch.equal(after.y, before.y[kept])


@pytest.mark.parametrize("kind", ["no image", "cut off"])
def test_many_damaged_files_are_an_error(root: Path, kind: str) -> None:
    for i in (1, 2):
        damage(root / "train" / "cat" / f"{i}.png", kind)
    with pytest.raises(ValueError, match=r"2 of 12 files in .*train cannot be read.*1\.png: "):
        folder(root)


def test_a_class_that_is_empty_after_skipping_is_an_error(root: Path) -> None:
    for i in range(6, 20):
        write(root / "train" / "cat" / f"{i}.png", colours(i))
    for path in (root / "train" / "dog" / "old").glob("[1-5].png"):
        path.unlink()
    damage(root / "train" / "dog" / "old" / "0.png", "no image")
    with pytest.raises(ValueError, match="without a readable image: dog"):
        folder(root)


def remove(path: Path) -> None:
    for below in sorted(path.rglob("*"), reverse=True):
        below.unlink() if below.is_file() else below.rmdir()
    path.rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train" / "bird").mkdir(), "only in train: bird"),
        (lambda root: remove(root / "train" / "dog"), r"1 class folder \(cat\)"),
        (lambda root: remove(root / "train"), "no folder train; needed are .*train/CLASS"),
        (lambda root: [(root / p / "bird").mkdir() for p in ("train", "val")], "image: bird"),
        (lambda root: [p.unlink() for p in root.glob("train/**/*.png")], "train holds no image"),
        (lambda root: remove(root / "train" / "cat") or remove(root / "train" / "dog"), "has 0"),
    ],
)
def test_a_wrong_folder_is_explained(
    root: Path, change: Callable[[Path], None], message: str
) -> None:
    change(root)
    with pytest.raises(ValueError, match=message):
        folder(root)


@pytest.mark.data
def test_real_folder_says_that_it_is_a_stand_in() -> None:
    root = Path(os.environ.get("GRATIS_DATA", ""), "cifar10-jpeg")
    if "GRATIS_DATA" not in os.environ or not root.is_dir():
        pytest.skip("$GRATIS_DATA/cifar10-jpeg is not there")
    test = folder(root, "test")
    assert test.x.shape == (10_000, 3, 32, 32)
    assert torch.bincount(test.y).tolist() == [1000] * 10
    assert (test.classes[0], test.classes[-1], test.skipped) == ("airplane", "truck", ())
    assert test.note is not None
    assert "JPEG-recompressed CIFAR-10" in test.note


# --- module:function --------------------------------------------------------------------------

X = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def from_function(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Images]:
    module = types.ModuleType("users_data")
    monkeypatch.setitem(sys.modules, "users_data", module)

    def read(result: Any, **options: Any) -> Images:
        module.read = result if callable(result) else lambda split, root: result  # type: ignore[attr-defined]
        return load("users_data:read", "train", **options)

    return read


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (X, X),
        (torch.tensor(X), X),
        (X.transpose(0, 2, 3, 1), X),
        (X[:, 0], X[:, :1]),
        (X[:, 0, :, :, None], X[:, :1]),
        (X[..., :1], X[..., :1]),  # dimension 1 is 3: channels, however narrow the image
        (X / 255, (X / 255).astype(np.float32)),
    ],
)
def test_pairs_of_arrays_become_images(
    x: Any, expected: np.ndarray, from_function: Callable[..., Images]
) -> None:
    read = from_function((x, Y))
    assert read.x.numpy().dtype == expected.dtype
    assert np.array_equal(read.x.numpy(), expected)
    assert read.y.tolist() == Y.tolist()
    assert (read.classes, read.name) == (("0", "1", "2"), "users_data:read")


def test_data_sets_of_tensors_or_pil_images_become_images(
    from_function: Callable[..., Images],
) -> None:
    tensors = from_function(TensorDataset(torch.tensor(X), torch.tensor(Y)))
    assert np.array_equal(tensors.x.numpy(), X)
    pil = [(Image.fromarray(x.transpose(1, 2, 0)), int(y)) for x, y in zip(X, Y, strict=True)]
    assert np.array_equal(from_function(pil).x.numpy(), X)
    assert from_function(pil, image_size=4).x.shape == (6, 3, 4, 4)
    grey = [(Image.fromarray(x[0]), int(y)) for x, y in zip(X, Y, strict=True)]
    assert np.array_equal(from_function(grey).x.numpy(), X[:, :1])


def test_a_data_sets_class_names_are_kept(from_function: Callable[..., Images]) -> None:
    dataset = TensorDataset(torch.tensor(X), torch.tensor(Y))
    dataset.classes = np.array(["a", "b", "c", "d"])
    assert from_function(dataset).classes == ("a", "b", "c", "d")


def test_the_function_is_told_split_and_root(
    tmp_path: Path, from_function: Callable[..., Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def read(split: str, root: Path | None) -> Any:
        given.append((split, root))
        return X, Y

    monkeypatch.delenv("GRATIS_DATA", raising=False)
    from_function(read)
    from_function(read, root=str(tmp_path))
    assert given == [("train", None), ("train", tmp_path)]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned a NoneType; it must return a pair"),
        ((X, Y[:5]), r"y has shape \[5\] for 6 images"),
        ((X, Y / 1.0), "y is torch.float64; integers"),
        ((X.astype(np.int64), Y), "x is torch.int64; uint8"),
        ((X / 1.0, Y), "divide by 255"),
        ((X[:0], Y[:0]), "returned no train images"),
        (([[1], [2, 3]], Y), "x is no array of numbers of one shape"),
        ([(X[0], 0), (X[1, :, :4], 1)], r"image 0 .*\[3, 8, 8\] and image 1 \[3, 4, 8\]"),
        ([(X[0], "cat")], "item 0 is no pair"),
        ([X[0]], "item 0 is no pair"),
        ([(X[0], 1.5)], "item 0 is no pair"),
        (lambda split: None, r"takes \(split\); it is called with split= and root="),
    ],
)
def test_what_is_no_data_is_explained(
    result: Any, message: str, from_function: Callable[..., Images]
) -> None:
    with pytest.raises(ValueError, match=message):
        from_function(result)


@pytest.mark.parametrize("name", ["no_such_module:read", "math:read", "math:pi"])
def test_a_function_that_is_none_is_explained(name: str) -> None:
    with pytest.raises(ValueError, match=r"could not be imported.*PYTHONPATH|must be a function"):
        load(name, "train")


def test_one_process_at_a_time_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = threading.Lock()

    class Downloaded:
        data, targets, classes = torch.zeros(2, 4, 4, dtype=torch.uint8), [0, 1], ["no", "yes"]

        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            if not download and not Path(root, "archive").exists():
                raise RuntimeError("Dataset not found")
            if download:
                assert busy.acquire(blocking=False), "two at once"
                time.sleep(0.1)
                Path(root, "archive").touch()
                busy.release()

    monkeypatch.setattr("torchvision.datasets.MNIST", Downloaded)
    with ThreadPool(3) as pool:
        found = pool.map(lambda _: load("mnist", "train", root=tmp_path), range(3))
    assert all(len(images) == 2 for images in found)
