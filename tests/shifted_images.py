"""Benchmarks' folders of images that are answered wrongly as often as they were made to be."""

import pytest
import torch
from PIL import Image

from gratis.data import Images, shifted
from gratis.data.corruptions import COMMON, EXTRA, SEVERITIES
from gratis.data.shifted import opened
from gratis.evaluate.shift import answer

CLASSES = ("n01", "n02", "n03")
PER_CLASS = 4
SIDE = 4
GRID = [(name, severity) for name in COMMON for severity in SEVERITIES]


class Told(torch.nn.Module):
    """Answers the class that an image's brightness says, twenty levels apart."""

    def forward(self, x):
        told = (255 * x[:, :1, 1:-1, 1:-1]).mean((2, 3))
        return -((told - 20 * torch.arange(len(CLASSES))) ** 2)


def wrong_of(name, severity):
    """How many of a cell's 12 images are answered wrongly: other for every cell of a corruption."""
    return (3 * (*COMMON, *EXTRA).index(name) + 2 * severity) % 12


def write(path, told, side=SIDE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (20 * told, 0, 0)).save(path)


def write_cell(directory, wrong, classes=CLASSES):
    """PER_CLASS images of each class, `wrong` of all of which tell another one."""
    left = wrong
    for label, name in enumerate(classes):
        for i in range(PER_CLASS):
            told = (label + (left > 0)) % len(CLASSES)
            left -= left > 0
            write(directory / name / f"{i}.png", told)


def clean(channels=3, side=SIDE):
    labels = torch.arange(12) % 3
    x = torch.zeros(12, channels, side, side)
    x[:, 0] = labels[:, None, None] * 20 / 255
    x[0, 0] = 20 / 255  # one of the twelve is answered wrongly
    return Images(x, labels, CLASSES, "clean", "test")


def answers(asked, images=None, resize=None, size=5):
    """(answers by place, shift) of every cell."""
    with opened(asked, images or clean(), resize) as shift:
        found = {
            (cell.corruption, cell.severity): answer(
                Told(), cell.batches(size), expected=len(cell), columns=shift.columns
            )
            for cell in shift.cells
        }
    return found, shift


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in shifted.COMPLETE:
        monkeypatch.setitem(shifted.COMPLETE, name, len(CLASSES) * PER_CLASS)
    monkeypatch.setattr(shifted, "IMAGENET_R_CLASSES", 2)
