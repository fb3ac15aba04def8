"""Detection's training images read from disk: the batches that memory gives, and its errors."""

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
from PIL import Image
from torch import Tensor

from gratis import train
from gratis.cli import main
from gratis.data import Loader, StreamLoader
from gratis.data import scenes as scenes_module
from gratis.data.detection import load_coco
from gratis.data.scenes import fitted
from gratis.data.streamed import Keeping, Stored
from gratis.data.streamed_scenes import StreamedScenes, training_scenes
from gratis.recipe import Recipe, load
from gratis.run import Run
from gratis.setting import build_loaders
from gratis.training_data import count, training_data
from tests.coco_trees import small, turned_boxes, write_split
from tests.test_detection_data import BAD, changed, damage
from tests.test_detection_runs import tiny
from tests.test_train import assert_same, final_state

NO_FLIP = torch.zeros(12, dtype=torch.bool)
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small(tmp_path / "coco")


def streamed(
    root: Path, stored: Stored = 64, image_size: int = 64, limit: int | None = None
) -> StreamedScenes:
    kept = Keeping(root, root.parent / "cache")
    images, _ = training_scenes(kept, (stored,), image_size, limit, ("test", image_size))
    return images


def batches(images: StreamedScenes, epoch: int = 0, start: int = 0, **options: Any) -> Batches:
    options = {"augment": ["flip"], **options}
    return list(StreamLoader(images, 5, seed=3, **options).epoch(epoch, start))


def assert_equal(ones: Batches, others: Batches) -> None:
    for (x, y), (u, v) in zip(ones, others, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


# --- what batches hold


@pytest.mark.parametrize(
    ("stored", "image_size"),
    [
        (64, 64),  # images of 80 x 60 were made smaller, those of 40 x 64 are as they were
        (48, 48),
        (100, 100),  # none is larger: stored as it is, enlarged in the batch
        (90, 48),
        ("files", 48),
        ("files", 100),
    ],
)
def test_squares_and_boxes_are_bitwise_those_in_memory(
    root: Path, stored: Stored, image_size: int
) -> None:
    images, held = streamed(root, stored, image_size), load_coco(root, "train", image_size)
    assert torch.equal(images.pixels(slice(None)), held.x / 255)
    assert torch.equal(images.targets(torch.arange(12), NO_FLIP), held.y)
    assert (images.classes, images.name, images.shape) == (held.classes, held.name, held.shape)
    in_memory = Loader(held, 5, seed=3).epoch(1)
    assert_equal(batches(images, 1, augment=[]), list(in_memory))
    assert torch.equal(images.in_memory(image_size, None, 1).x, held.x)


def test_no_image_is_stored_larger_than_asked_or_than_it_is(root: Path) -> None:
    images = streamed(root, 64)
    sizes = Counter(images.source.image(row).shape for row in range(12))
    assert sizes == {(48, 64, 3): 6, (64, 40, 3): 6}


def test_an_image_stored_larger_is_fitted_as_its_original(tmp_path: Path) -> None:
    """Rounded to 48 pixels and then to 32 it would be a pixel off its boxes."""
    height, width = 22, 61
    assert fitted(*fitted(height, width, 48), 32) != fitted(height, width, 32)
    box = {"image_id": 1, "category_id": 3, "bbox": [0, 0, width, height]}
    for split in ("train", "val"):
        write_split(tmp_path / "coco", split, [(1, width, height)], [box])
    images = streamed(tmp_path / "coco", 48, 32)
    assert images.source.image(0).shape == (*fitted(height, width, 48), 3)
    right, bottom = (
        int(edge) for edge in images.targets(torch.tensor([0]), NO_FLIP[:1])[0, 0, 2:4]
    )
    assert (bottom, right) == fitted(height, width, 32)
    (pixels,) = images.pixels(slice(None))
    assert pixels[:, bottom - 1].min() > 0
    assert pixels[:, bottom:].max() == 0


def test_boxes_refer_to_pixels_as_they_lie_in_the_file(root: Path) -> None:
    path = root / "train2017" / "000000000001.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # to be turned by a quarter when shown
        image.save(path, exif=exif)
    held = load_coco(root, "train", 64)
    for stored in (64, "files"):
        assert torch.equal(streamed(root, stored).pixels(slice(None)), held.x / 255)


def test_half_of_the_images_are_mirrored_and_their_boxes_with_them(root: Path) -> None:
    images, turned = streamed(root), 0
    for epoch in range(3):
        plain = batches(images, epoch, augment=[])
        for (x, y), (z, w) in zip(plain, batches(images, epoch), strict=True):
            for image in range(len(x)):
                wanted = y[image]
                if not torch.equal(x[image], z[image]):
                    turned += 1
                    assert torch.equal(z[image], x[image].flip(2))
                    wanted = turned_boxes(wanted, 64)
                assert torch.equal(w[image], wanted)
    assert 8 < turned < 28


def test_threads_and_a_later_start_change_nothing(root: Path) -> None:
    images = streamed(root)
    whole = batches(images, 2)
    assert [len(y) for _, y in whole] == [5, 5, 2]
    assert_equal(whole, batches(images, 2, workers=3))
    assert_equal(whole[1:], batches(images, 2, 1, workers=2))
    assert not torch.equal(whole[0][0], batches(images, 3)[0][0])


def test_loaders_that_share_batches_form_the_whole(root: Path) -> None:
    second = {"id": 99, "image_id": 1, "category_id": 7, "bbox": [5, 5, 9, 9]}
    changed(root, lambda known: known["annotations"].append(second))
    images = streamed(root)
    assert torch.equal(images.targets(torch.arange(12), NO_FLIP), load_coco(root, "train", 64).y)
    parts = [
        list(StreamLoader(images, 6, seed=3, augment=["flip"], world=2, take=take).epoch(0))
        for take in (lambda n: torch.arange(n // 2), lambda n: torch.arange(n // 2, n))
    ]
    joined = [(torch.cat([x, u]), torch.cat([y, v])) for (x, y), (u, v) in zip(*parts, strict=True)]
    assert_equal(joined, list(StreamLoader(images, 6, seed=3, augment=["flip"]).epoch(0)))


@pytest.mark.parametrize(
    ("augment", "message"),
    [("resized-crop", "boxes follow a flip, no crop"), ("crop-4", "crop-4 is for images in mem")],
)
def test_no_box_is_cut(root: Path, augment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(streamed(root), augment=[augment])
    with pytest.raises(ValueError, match=r"data\.augment: boxes follow a flip, no crop"):
        of_tree(root, f"data.augment=[{augment}]")


def test_the_first_images_are_those_of_memory(root: Path) -> None:
    few = streamed(root, limit=5)
    assert torch.equal(few.pixels(slice(None)), load_coco(root, "train", 64).x[:5] / 255)
    assert torch.equal(
        few.select(torch.tensor([3, 1])).pixels(slice(None)), few.pixels(torch.tensor([3, 1]))
    )


def test_a_fingerprint_is_of_files_and_boxes_and_kept_pixels_are_of_files(root: Path) -> None:
    before = streamed(root)
    assert before.fingerprint == streamed(root).fingerprint
    assert before.fingerprint != before.select(torch.arange(11)).fingerprint
    changed(root, lambda known: known["annotations"][0].update(bbox=[2, 2, 9, 9]))
    after = streamed(root)
    assert before.fingerprint != after.fingerprint
    assert len(list((root.parent / "cache").iterdir())) == 1
    y = after.targets(torch.tensor([0]), NO_FLIP[:1])
    assert y[0, 0, :4].tolist() == pytest.approx([1.6, 1.6, 8.8, 8.8])


# --- trees that are not as they should be


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_named_as_in_memory(root: Path, kind: str) -> None:
    spoil, message = BAD[kind]
    spoil(root)
    with pytest.raises(ValueError, match=message):
        streamed(root)


def test_a_size_that_was_not_annotated_is_noticed_when_a_file_is_read(root: Path) -> None:
    spoil, message = BAD["another size than annotated"]
    spoil(root)
    with pytest.raises(ValueError, match=message):
        batches(streamed(root, "files"))


def test_annotations_that_change_do_not_fit_what_was_decoded(root: Path) -> None:
    streamed(root)
    changed(root, lambda known: known["images"][3].update(width=50))
    with pytest.raises(ValueError, match=r"such as 000000000004\.png, which is 40x64"):
        streamed(root)


def test_what_is_judged_on_is_looked_at_before_anything_is_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Keeping(root, root.parent / "cache")
    memory = {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
    with monkeypatch.context() as patched:
        patched.setattr(scenes_module.os, "sysconf", memory.__getitem__)
        for split in ("test", "train"):
            with pytest.raises(ValueError, match=r"12 images of 64 pixels need .*data\.image_size"):
                training_scenes(kept, (64,), 64, None, (split, 64))
    others = [{"id": 3, "name": "cat"}, {"id": 7, "name": "cow"}]
    changed(root, lambda known: known.update(categories=others), "val")
    with pytest.raises(ValueError, match=r"only in train: dog; only in test: cow"):
        training_scenes(kept, (64,), 64, None, ("test", 64))
    shutil.rmtree(root / "val2017")
    with pytest.raises(ValueError, match=r"has no test split.*data\.test_split=train"):
        training_scenes(kept, (64,), 64, None, ("test", 64))
    assert not kept.directory.exists()
    assert len(training_scenes(kept, (64,), 64, None, ("train", 64))[0]) == 12


def test_damaged_images_are_left_out_with_their_boxes(root: Path) -> None:
    damage(root, range(3, 4))
    images, held = streamed(root), load_coco(root, "train", 64)
    assert images.skipped == held.skipped == ("train2017/000000000003.png",)
    assert torch.equal(images.pixels(slice(None)), held.x / 255)
    y = images.targets(torch.arange(11), NO_FLIP[:11])
    assert torch.equal(y, held.y)
    with pytest.raises(ValueError, match=r"0003\.png cannot be read .* data\.stored to a number"):
        batches(streamed(root, "files"))
    damage(root, range(4, 5))
    with pytest.raises(ValueError, match=r"2 of 12 files in .*train2017 cannot be read"):
        streamed(root)


# --- runs


def of_tree(root: Path, *settings: str, method: str = "natural", passes: float = 1.5) -> Recipe:
    data = f"data={{name: coco, root: {root}, batch_size: 4, holdout: 0, augment: [flip]}}"
    where = [data, "data.image_size=64", "data.stored=64", f"data.cache={root.parent / 'cache'}"]
    return tiny(method, *where, "data.workers=1", *settings, passes=passes)


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


def test_a_run_that_was_interrupted_goes_on_bitwise(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("method.adversarial=0.25", "engine.checkpoint_seconds=0", "data.workers=2")
    recipe = of_tree(root, *settings, method="fast-advprop", passes=2.5)
    whole = train.run(recipe, tmp_path / "whole")
    saved, out = Run.save_checkpoint, tmp_path / "parts"

    def stop(self: Run, name: str, state: dict[str, Any]) -> None:
        saved(self, name, state)
        if state["updates"] == 4:  # in the middle of the second epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train.run(recipe, out)
    monkeypatch.undo()
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
