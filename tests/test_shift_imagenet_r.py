"""ImageNet-R and Stylized-ImageNet: their folders, and the classes that are asked about."""

import shutil

import pytest
import torch
from PIL import Image

from gratis.data import shifted
from gratis.data.decoding import to_array
from gratis.data.shifted import Asked, opened
from gratis.evaluate.shift import Answer, answer
from tests.shifted_images import (
    CLASSES,
    SIDE,
    answers,
    clean,
    small,
    write,
    write_cell,
)

__all__ = ["small"]  # a fixture, which every test has


class Random(torch.nn.Module):
    """Logits drawn by each image's brightness, for all classes."""

    def forward(self, x):
        weight = torch.randn(len(CLASSES), 64, generator=torch.Generator().manual_seed(3))
        return torch.sin(1000 * x[:, :1, 0, 0] * torch.arange(1, 65)) @ weight.T


def test_the_mask_of_imagenet_r_is_that_of_its_folders(tmp_path):
    folders = ("n01", "n03")
    for name in folders:
        for i in range(6):
            shade = 17 * i + 3 * int(name[-1])
            write(tmp_path / name / f"{i}.png", 0, side=6)
            Image.new("RGB", (6, 6), (shade, 0, 0)).save(tmp_path / name / f"{i}.png")
    with opened(Asked("imagenet-r", tmp_path), clean(), None) as shift:
        (cell,) = shift.cells
        found = answer(Random(), cell.batches(5), expected=len(cell), columns=shift.columns)
    masked = unmasked = 0
    for name in folders:
        for i in range(6):
            with Image.open(tmp_path / name / f"{i}.png") as image:
                x = torch.from_numpy(to_array(image, False, SIDE).copy())[None] / 255
            logits = Random()(x)[0]
            answered = folders[int(torch.tensor([logits[0], logits[2]]).argmax())]
            masked += answered != name
            unmasked += CLASSES[int(logits.argmax())] != name
    assert found == Answer(12, masked, 0, unmasked)
    assert 0 < masked < unmasked < 12, "the mask matters here"
    assert shift.columns.tolist() == [0, 2]
    assert shift.about["preprocessing"] == "shorter side resized to 4 px, centre of 4 px"
    assert found.accuracy()["correct"] == 12 - masked
    assert found.accuracy(unmasked=True)["accuracy"] == (12 - unmasked) / 12


def test_the_classes_of_imagenet_r_must_be_known_and_all_there(tmp_path, monkeypatch):
    write_cell(tmp_path, 0)
    with pytest.raises(ValueError, match="has 3 class folders in place of 2; --partial"):
        answers(Asked("imagenet-r", tmp_path))
    found, shift = answers(Asked("imagenet-r", tmp_path, partial=True))
    assert found["imagenet-r", 0].wrong == 0
    assert shift.partial == ("has 3 class folders in place of 2",)
    monkeypatch.setattr(shifted, "IMAGENET_R_CLASSES", 4)
    write(tmp_path / "n99" / "0.png", 0)
    with pytest.raises(ValueError, match=r"none of the run's 3 classes \(n01, n02, n03\): n99"):
        answers(Asked("imagenet-r", tmp_path, partial=True))


def test_stylized_images_are_read_as_the_runs_own(tmp_path):
    with pytest.raises(ValueError, match=r"needed is .*val/CLASS"):
        answers(Asked("stylized", tmp_path))
    write_cell(tmp_path / "val", 5)
    found, shift = answers(Asked("stylized", tmp_path), resize=6)
    assert found == {("stylized", 0): Answer(12, 5)}
    assert shift.columns is None
    assert shift.about["preprocessing"] == "shorter side resized to 6 px, centre of 4 px"
    shutil.rmtree(tmp_path / "val" / "n02")
    with pytest.raises(ValueError, match="there is none for n02"):
        answers(Asked("stylized", tmp_path, partial=True))
