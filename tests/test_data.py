"""Images, what is held out of them, and the data sets that have a name."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from gratis.data import Images, check_match, hold_out, load


def images(count: int = 20, **changes: Any) -> Images:
    x = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    given = {"x": x.to(torch.uint8), "y": torch.arange(count) % 2, "classes": ("a", "b")}
    return Images(**{**given, "name": "made", "split": "train", **changes})


# --- Images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(20, 4, 4, dtype=torch.uint8)}, r"shape \[20, 4, 4\]; \[N, C, H, W\]"),
        ({"x": torch.zeros(20, 1, 4, 4, dtype=torch.int64)}, "x is torch.int64; uint8"),
        ({"x": torch.zeros(20, 1, 4, 4, dtype=torch.float64)}, "x is torch.float64"),
        ({"y": torch.zeros(19, dtype=torch.int64)}, r"shape \[19\] for 20 images"),
        ({"y": torch.zeros(20, 2, dtype=torch.int64)}, r"shape \[20, 2\]"),
        ({"y": torch.zeros(20, dtype=torch.int32)}, "y is torch.int32; int64"),
        ({"y": torch.arange(20) % 3}, "labels run from 0 to 2; with 2 classes"),
        ({"y": torch.arange(20) % 2 - 1}, "labels run from -1 to 0"),
        ({"classes": ("a",)}, "there are 1 classes"),
        ({"x": torch.full((20, 1, 4, 4), 255.0)}, "255 to 255; .* divide by 255"),
        ({"x": torch.full((20, 1, 4, 4), -0.4)}, "undo the normalisation"),
        ({"x": torch.full((20, 1, 4, 4), float("nan"))}, "some pixels are NaN"),
        ({"x": torch.full((20, 1, 4, 4), float("inf"))}, "from inf to inf"),
    ],
)
def test_what_is_no_set_of_images_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r"made \(train\).*" + message):
        images(**changes)


def test_pixels_are_exact_fractions_of_255() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(16, 1, 4, 4)
    made = images(16, x=every)
    pixels = made.pixels(torch.arange(16))
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels.flatten(), torch.arange(256) / 255)
    assert torch.equal(made.pixels(torch.tensor([3, 1])), pixels[[3, 1]])


def test_the_fingerprint_is_a_hash_of_shape_type_pixels_and_labels() -> None:
    made = images()
    expected = hashlib.sha256(b"[20, 1, 4, 4] torch.uint8")
    expected.update(bytes(made.x.flatten().tolist()))
    expected.update(made.y.numpy().tobytes())
    assert made.fingerprint == expected.hexdigest() == images().fingerprint
    others = [
        images(x=made.x.view(20, 1, 2, 8)),
        images(x=made.x ^ 1),
        images(y=1 - made.y),
        images(x=made.x.float() / 255),
        made.select(torch.arange(19)),
    ]
    assert len({other.fingerprint for other in others} | {made.fingerprint}) == 6


def test_select_takes_rows_in_the_order_given_and_keeps_the_rest() -> None:
    made = images(note="a note")
    chosen = made.select(torch.tensor([5, 2]))
    assert torch.equal(chosen.x, made.x[[5, 2]])
    assert chosen.y.tolist() == [1, 0]
    assert (chosen.note, len(chosen), len(made.to("cpu"))) == ("a note", 2, 20)


@pytest.mark.parametrize(("share", "held"), [(0, 0), (0.0, 0), (0.25, 5), (0.001, 1), (7, 7)])
def test_hold_out_splits_in_the_old_order(share: float, held: int) -> None:
    made = images(x=torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1))
    training, held_out = hold_out(made, share, seed=3)
    numbers = [part.x.flatten().tolist() for part in (training, held_out)]
    assert [len(n) for n in numbers] == [20 - held, held]
    assert all(n == sorted(n) for n in numbers)
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert (training.split, held_out.split) == ("train", "held-out")


def test_hold_out_follows_its_seed_and_its_bound() -> None:
    made = images(200)
    chosen = [hold_out(made, 0.5, seed=s, at_most=30)[1] for s in (0, 0, 1)]
    assert [len(c) for c in chosen] == [30, 30, 30]
    assert chosen[0].fingerprint == chosen[1].fingerprint != chosen[2].fingerprint
    assert len(hold_out(made, 50, seed=0, at_most=30)[1]) == 50  # a count is meant


@pytest.mark.parametrize("share", [1.0, -0.1, 20, -1, float("nan")])
def test_hold_out_leaves_something_to_train_on(share: float) -> None:
    with pytest.raises(ValueError, match="fraction below 1"):
        hold_out(images(), share, seed=0)


def test_check_match_compares_sizes_and_classes() -> None:
    training = images()
    check_match(training, images(split="test"))
    check_match(images(classes=("a", "b", "c")), images(split="test"))
    with pytest.raises(ValueError, match="1x4x4 and test images 1x2x8"):
        check_match(training, images(x=training.x.view(20, 1, 2, 8), split="test"))
    with pytest.raises(ValueError, match=r"only in train: b; only in test: c"):
        check_match(training, images(classes=("a", "c"), split="test"))
    with pytest.raises(ValueError, match="another order"):
        check_match(training, images(classes=("b", "a"), split="test"))


# --- by name ----------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_two_disjoint_parts() -> None:
    from sklearn.datasets import load_digits

    training, test = load("digits", "train"), load("digits", "test")
    assert (len(training), len(test)) == (1297, 500)
    assert training.x.shape[1:] == (1, 8, 8)
    assert training.classes == tuple("0123456789")
    rows = np.concatenate(
        [np.rint(part.x.flatten(1).numpy() * (16 / 255)) for part in (training, test)]
    )
    labels = torch.cat([training.y, test.y]).numpy()
    both = np.column_stack([rows, labels])
    expected = np.column_stack([load_digits().data, load_digits().target])
    assert sorted(map(tuple, both)) == sorted(map(tuple, expected))
    levels = [round(level * 255 / 16) for level in range(17)]
    assert training.x.unique().tolist() == levels
    # The split is the same for ever: figures on it are comparable.
    assert test.y[:10].tolist() == [0, 9, 6, 9, 8, 4, 5, 8, 1, 6]


def write_mnist(root: Path, count: int) -> np.ndarray:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = np.array([2051, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([2049, count], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            header + bytes(i % 10 for i in range(count))
        )
    return pixels


def test_mnist_files_become_grey_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_mnist(tmp_path, 20)
    monkeypatch.setenv("GRATIS_DATA", str(tmp_path))
    mnist = load("mnist", "test")
    assert np.array_equal(mnist.x.numpy(), pixels[:, None])
    assert mnist.y.tolist() == [i % 10 for i in range(20)]
    assert mnist.classes[3] == "3 - three"


def test_cifar_pixels_become_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    stored = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)

    class Stored:
        data, targets = stored.transpose(0, 2, 3, 1), [0, 1, 1, 0]
        classes = ("cat", "dog")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (root, train, download) == (str(tmp_path), True, False)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Stored)
    cifar = load("cifar10", "train", root=tmp_path)
    assert np.array_equal(cifar.x.numpy(), stored)
    assert cifar.y.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "module", "layout"),
    [
        ("mnist", "mnist", "MNIST/raw/{train,t10k}"),
        ("cifar100", "cifar", "cifar-100-python/{train,test,meta}"),
    ],
)
def test_data_that_cannot_be_downloaded_shows_the_layout(
    name: str,
    module: str,
    layout: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        sys.stderr.write("  0%|          | progress")
        raise URLError("no route to host")

    archive = f"torchvision.datasets.{module}.download_and_extract_archive"
    monkeypatch.setattr(archive, refuse)
    with pytest.raises(ValueError, match="no route to host") as error:
        load(name, "train", root=tmp_path)
    assert f"{tmp_path}/{layout}" in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_root_names_both_ways_to_give_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data\.root=DIR .*GRATIS_DATA"):
        load("mnist", "train")
    with pytest.raises(ValueError, match="nowhere of mnist is no directory"):
        load("mnist", "train", root=tmp_path / "nowhere")


def test_wrong_names_and_sizes_are_explained() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'digits'\?.*cifar100, folder"):
        load("digit", "train")
    with pytest.raises(ValueError, match="no split 'val'"):
        load("digits", "val")
    with pytest.raises(ValueError, match="image_size is 16 and the images of digits are 8x8"):
        load("digits", "train", image_size=16)
    assert len(load("digits", "test", image_size=8)) == 500


@pytest.mark.data
def test_real_mnist() -> None:
    root = os.environ.get("GRATIS_DATA")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("$GRATIS_DATA/MNIST/raw is not there")
    training, test = load("mnist", "train"), load("mnist", "test")
    assert (training.x.shape, test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert torch.bincount(test.y).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert training.pixels(torch.arange(60_000)).mean().item() == pytest.approx(0.1307, abs=1e-4)
    check_match(training, test)
