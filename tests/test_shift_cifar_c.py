"""CIFAR-10-C and CIFAR-100-C: severities are fifths of each file, wrong arrays are refused."""

import shutil

import numpy as np
import pytest

from gratis.data import shift_files, shifted
from gratis.data.corruptions import COMMON, SEVERITIES
from gratis.data.shift_files import check_cifars
from gratis.data.shifted import Asked
from tests.shifted_images import CLASSES, GRID, answers, clean, small, wrong_of

__all__ = ["small"]  # a fixture, which every test has


def cifar_c(root, names=COMMON, per=12):
    root.mkdir()
    labels = np.tile(np.arange(per) % 3, 5)
    np.save(root / "labels.npy", labels)
    for name in names:
        rows = np.zeros((5 * per, 32, 32, 3), np.uint8)
        for severity in SEVERITIES:
            for i in range(per):
                told = (i + (i < wrong_of(name, severity))) % 3
                rows[(severity - 1) * per + i, :, :, 0] = 20 * told
        np.save(root / f"{name}.npy", rows)
    return root


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    monkeypatch.setitem(shifted.CIFAR_CLASSES, "cifar10-c", 3)
    monkeypatch.setitem(shift_files.CIFAR_ENDS, "cifar10-c", (CLASSES[0], CLASSES[-1]))
    return cifar_c(tmp_path / "cifar")


def test_severities_are_fifths_of_each_file(cifar):
    found, shift = answers(Asked("cifar10-c", cifar), clean(side=32))
    assert {place: one.wrong for place, one in found.items()} == {
        place: wrong_of(*place) for place in GRID
    }
    assert shift.partial == ()
    assert all(isinstance(cell.rows, np.memmap) for cell in shift.cells)
    few, shift = answers(Asked("cifar10-c", cifar, severities=(4,), limit=7), clean(side=32))
    assert {name: one.wrong for (name, _), one in few.items()} == {
        name: min(7, wrong_of(name, 4)) for name in COMMON
    }
    assert len(shift.partial) == 2


def damaged(cifar, name, array):
    np.save(cifar / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: (c / "fog.npy").unlink(), r"lacks fog.npy; --partial"),
        (lambda c: (c / "labels.npy").unlink(), "no labels.npy"),
        (
            lambda c: damaged(c, "fog", np.zeros((60, 32, 32, 3), np.float32)),
            "fog.npy holds float32 .*needed is uint8",
        ),
        (
            lambda c: damaged(c, "fog", np.zeros((60, 3, 32, 32), np.uint8)),
            r"shape \[60, 3, 32, 32\]; needed is uint8 of shape \[60, 32, 32, 3\]",
        ),
        (lambda c: damaged(c, "fog", np.zeros((12, 32, 32, 3), np.uint8)), r"shape \[12, 32"),
        (lambda c: (c / "fog.npy").write_bytes(b"no array"), "is no file of numpy's"),
        (lambda c: damaged(c, "labels", np.zeros(59, np.int64)), r"shape \[59\].*\[50000\]"),
        (lambda c: damaged(c, "labels", np.zeros(60)), "holds float64; whole numbers"),
        (lambda c: damaged(c, "labels", np.full(60, 3)), "between 0 and 2"),
        (lambda c: shutil.rmtree(c), "is no directory"),
    ],
)
def test_wrong_arrays_are_refused(cifar, change, said):
    change(cifar)
    with pytest.raises(ValueError, match=said):
        answers(Asked("cifar10-c", cifar), clean(side=32))


def test_cifars_own_size_and_classes_are_needed(cifar):
    with pytest.raises(ValueError, match="32x32, the run's are 4x4"):
        answers(Asked("cifar10-c", cifar))
    with pytest.raises(ValueError, match="has 100 classes, the run 3"):
        answers(Asked("cifar100-c", cifar), clean(side=32))


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_labels_count_cifars_classes_in_its_order():
    check_cifars("cifar10-c", CIFAR10)
    check_cifars("cifar10-c", ("plane", "car", *CIFAR10[2:]))
    check_cifars("cifar10-c", tuple(map(str, range(10))))
    for wrong in (sorted(("plane", "car", *CIFAR10[2:])), CIFAR10[::-1], ("ant", *CIFAR10[1:])):
        with pytest.raises(ValueError, match=r"from airplane to truck.*the run's are"):
            check_cifars("cifar10-c", tuple(wrong))
