"""Test images that lack the last class, where classes are counted from labels."""

import copy
from pathlib import Path

import pytest
import torch

from gratis import train
from gratis.cli import main
from gratis.data import Images, load
from gratis.run import Run
from tests.recipes import tiny


def ones_own(split: str, root: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits as arrays; no 9 among the test images."""
    images = load("digits", split)
    assert isinstance(images, Images)
    chosen = images if split == "train" else images.select((images.y < 9).nonzero().flatten())
    return chosen.x, chosen.y


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = tiny("fgsm-rs", f"data.name={__name__}:ones_own")
    return train.run(recipe, tmp_path_factory.mktemp("lacking") / "run")


def test_the_network_is_the_trained_one_wherever_it_is_looked_at(run: Run, tmp_path: Path) -> None:
    assert run.results is not None
    assert run.results["evaluations"][0]["images"]["count"] == 24
    state = copy.deepcopy(run.load_checkpoint("last")[0])
    assert state["classes"] == [str(number) for number in range(10)]
    path = str(run.path)
    assert main(["evaluate", path, "--attack", "fgsm", "--limit", "9", "--checks", "none"]) == 0
    assert main(["export", path, "--as", "weights", "--out", str(tmp_path / "net.pt")]) == 0
    assert main(["pictures", path, "--limit", "12", "--out", str(tmp_path / "page.html")]) == 0
    assert main(["report", path]) == 0
