"""Detectors trained on images read from disk: whole runs, phases, shipped recipes, the log."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gratis import train
from gratis.cli import main
from gratis.data import Loader
from gratis.data.detection import load_coco
from gratis.data.streamed_scenes import StreamedScenes
from gratis.recipe import load
from gratis.run import Run
from gratis.setting import build_loaders
from gratis.training_data import count, training_data
from tests.detection_recipes import of_tree
from tests.dying import assert_same, dies, final_state
from tests.test_detection_data import changed, damage
from tests.test_detection_streamed import assert_equal, root

__all__ = ["root"]  # a fixture, asked for by name


def test_a_streamed_run_is_that_in_memory(root: Path, tmp_path: Path) -> None:
    """Without flips, which memory draws for a whole epoch at once."""
    plain = "data.augment=[]"
    on_disk = train.run(of_tree(root, plain), tmp_path / "disk")
    in_memory = of_tree(root, plain, "data.stored=null", "data.cache=null", "data.workers=null")
    held = train.run(in_memory, tmp_path / "memory")
    one, other = final_state(on_disk.path), final_state(held.path)
    assert one["updates"] == other["updates"] == 4
    for key, value in one["model"].items():
        assert torch.equal(value, other["model"][key]), key
    assert on_disk.results is not None
    assert held.results is not None
    same = {"seconds": 0}
    assert on_disk.results["detection"] | same == held.results["detection"] | same


def test_a_run_that_was_interrupted_goes_on_bitwise(root: Path, tmp_path: Path) -> None:
    settings = ("method.adversarial=0.25", "engine.checkpoint_seconds=0", "data.workers=2")
    recipe = of_tree(root, *settings, method="fast-advprop", passes=2.5)
    whole = train.run(recipe, tmp_path / "whole")
    out = tmp_path / "parts"
    with dies(5):  # after 4 updates, in the middle of the second epoch
        train.run(recipe, out)
    train.run(recipe, out, resume=True)
    assert_same(final_state(whole.path), final_state(out))
    assert whole.results is not None
    assert whole.results["budget"]["metered_passes"] == whole.results["budget"]["predicted_passes"]


PHASES = (
    "phases=[{share: 0.5, stored: 48, image_size: 48}, {share: 0.5, stored: files, batch_size: 6}]"
)


def test_boxes_follow_the_phases(root: Path, tmp_path: Path) -> None:
    recipe = of_tree(root, "data.augment=[]", PHASES, passes=2)
    loaders = build_loaders(recipe, training_data(recipe), torch.device("cpu"))
    for loader, size, batch in zip(loaders, (48, 64), (4, 6), strict=True):
        held = Loader(load_coco(root, "train", size), batch, seed=recipe.seed)
        assert_equal(list(loader.epoch(1)), list(held.epoch(1)))
    run = train.run(recipe, tmp_path / "run")
    assert run.results is not None
    assert run.results["budget"]["updates"] == 3 + 2


def test_task_and_data_must_fit_before_anything_is_decoded(root: Path, tmp_path: Path) -> None:
    classes = ["task.name=classification", "model.name=small-conv", "model.options={}"]
    with pytest.raises(ValueError, match="classification does not fit coco, whose images have box"):
        train.run(of_tree(root, *classes), tmp_path / "a")
    with pytest.raises(ValueError, match="detection does not fit folder, whose images have one"):
        train.run(of_tree(root, "data.name=folder"), tmp_path / "b")
    assert not (root.parent / "cache").exists()
    with pytest.raises(ValueError, match=r"name=folder or coco, made image_size; give both"):
        of_tree(root, "data.image_size=null")


def test_images_are_counted_without_being_read(root: Path) -> None:
    damage(root, range(1, 13))
    data = of_tree(root).data
    assert (count(data, "train"), count(data, "test")) == (12, 12)
    shutil.rmtree(root / "val2017")
    assert count(replace(data, test_split="train"), "test") == 12


@pytest.mark.parametrize("name", ["retinanet-coco", "fast-advprop-coco"])
def test_the_shipped_recipes_stream_and_need_the_root_alone(
    root: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load(name).data
    assert data.stored == data.image_size
    damage(root, range(3, 4))
    settings = [
        *(f"data.root={root}", "data.image_size=64", "data.stored=64", "data.batch_size=4"),
        *("model.name=tests.tiny_detector:build", "model.options={}", "model.aux_groups=1"),
        *("engine={device: cpu}", "budget={data_passes: 1}"),
    ]
    out = tmp_path / "run"
    words = ["train", name, "--out", str(out)]
    assert main([*words, *(word for s in settings for word in ("--set", s))]) == 0
    assert "mean average precision: 12 test images fitted into 64 px" in capsys.readouterr().out
    run = Run.open(out)
    warnings = [record["message"] for record in run.log() if record["kind"] == "warning"]
    assert warnings == ["not readable as an image, skipped: train2017/000000000003.png"]
    (kept,) = (root / ".gratis-cache").iterdir()
    index = json.loads((kept / "00000.json").read_text())
    assert Counter(map(tuple, index["sizes"])) == {(48, 64): 5, (64, 40): 6, (0, 0): 1}


@pytest.mark.parametrize("stored", ["null", "64"])
def test_what_became_of_odd_boxes_is_for_the_log(root: Path, stored: str) -> None:
    def beyond(known: dict[str, Any]) -> None:
        known["annotations"] += [
            {"id": 100 + n, "image_id": 1, "category_id": 7, "bbox": box}
            for n, box in enumerate([[70, 50, 30, 30], [90, 0, 10, 10], [5, 5, 0, 8]])
        ]

    changed(root, beyond)
    where = [f"data.root={root}", "data.image_size=64", f"data.stored={stored}"]
    found = training_data(load("retinanet-coco", [*where, "data.batch_size=4"]))
    assert found.remarks == [
        "boxes of training images that reach beyond their image and were cut to it: 1",
        "boxes of training images that have no area inside of their image and were left out: 2",
    ]


@pytest.mark.data
def test_photographs_of_coco_are_streamed_as_they_are_in_memory(tmp_path: Path) -> None:
    root = Path(os.environ.get("GRATIS_DATA", "/nowhere"), "coco128")
    if not root.is_dir():
        pytest.skip("$GRATIS_DATA/coco128 is not there")
    where = [f"data.root={root}", "data.test_split=train", f"data.cache={tmp_path / 'cache'}"]
    small_ones = ["data.image_size=96", "data.stored=96", "data.workers=2", "data.batch_size=32"]
    net = ["model.name=tests.tiny_detector:build", "model.options={}", "engine={device: cpu}"]
    course = ["optimizer.learning_rate=1e-2", "budget={data_passes: 2}", "evaluation.limit=8"]
    recipe = load("retinanet-coco", [*where, *small_ones, *net, *course])
    data, held = training_data(recipe), load_coco(root, "train", 96)
    assert torch.equal(data.training.pixels(slice(None)), held.x / 255)
    assert isinstance(data.training, StreamedScenes)
    y = data.training.targets(torch.arange(128), torch.zeros(128, dtype=torch.bool))
    assert torch.equal(y, held.y)
    run = train.run(recipe, tmp_path / "run")
    losses = [record["loss"] for record in run.log() if record["kind"] == "step"]
    assert len(losses) == 8
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
