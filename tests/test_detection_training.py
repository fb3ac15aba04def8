"""Training a detector: its budget, its batches, going on, two processes; and what is refused."""

import socket
from pathlib import Path

import pytest
import torch

from gratis import train
from gratis.data import Loader
from gratis.data.detection import shapes
from gratis.recipe import Recipe
from gratis.report import write_report
from gratis.run import Run
from tests.coco_trees import small, turned_boxes
from tests.detection_recipes import tiny
from tests.dying import assert_same, dies, final_state
from tests.two_processes import become, needs_gloo


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("natural", []),
        ("fast-advprop", ["method.adversarial=0.5", "method.reuse=false", "task.attack=class"]),
    ],
)
def test_the_budget_is_predicted_exactly(tmp_path: Path, method: str, settings: list[str]) -> None:
    settings = [*settings, "evaluation.limit=1"]
    run = train.run(tiny(method, *settings, passes=0.9), tmp_path / "run")
    assert run.results is not None
    budget = run.results["budget"]
    assert 0 < budget["predicted_passes"] == budget["metered_passes"] <= 0.9


def test_a_run_that_was_interrupted_goes_on_bitwise(tmp_path: Path) -> None:
    recipe = tiny("fast-advprop", "method.adversarial=0.25", "engine.checkpoint_seconds=0")
    whole = train.run(recipe, tmp_path / "whole")
    out = tmp_path / "parts"
    with dies(3):
        train.run(recipe, out)
    resumed = train.run(recipe, out, resume=True)
    assert_same(final_state(tmp_path / "whole"), final_state(out))
    assert resumed.results is not None
    assert whole.results is not None
    assert resumed.results["detection"]["map"] == whole.results["detection"]["map"]


def test_batches_mirror_boxes_with_their_images() -> None:
    images = shapes("train").select(torch.arange(12))
    plain = Loader(images, 12, seed=0, shuffle=False)
    flipped = Loader(images, 12, seed=0, shuffle=False, augment=["flip"])
    (x, y), (z, w) = next(plain.epoch(0)), next(flipped.epoch(0))
    assert torch.equal(y, images.y)
    turned = [not torch.equal(a, b) for a, b in zip(x, z, strict=True)]
    assert 0 < sum(turned) < 12
    for image in range(12):
        wanted = y[image]
        if turned[image]:
            assert torch.equal(z[image], x[image].flip(2))
            wanted = turned_boxes(wanted, 64)
        assert torch.equal(w[image], wanted)


def test_a_coco_tree_is_learned_and_judged_on_its_own_training_images(tmp_path: Path) -> None:
    root = small(tmp_path / "coco", ["train"])
    of_files = ["data.name=coco", f"data.root={root}", "data.image_size=64", "data.limit=8"]
    with pytest.raises(ValueError, match=r"has no test split.*data\.test_split=train"):
        train.run(tiny("natural", *of_files), tmp_path / "none")
    recipe = tiny("natural", *of_files, "data.test_split=train")
    run = train.run(recipe, tmp_path / "run")
    assert run.results is not None
    found = run.results["detection"]
    assert found["trained_on"] is True
    assert found["images"] == {"split": "train", "start": 0, "count": 8}
    assert found["boxes"]["crowds"] == 1
    assert run.results["data"]["split"] == "train"
    write_report([run], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "Judged on the training images themselves" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=trades-4"], r"method\.name: trades has no use for boxes; .* fast-advprop"),
        (["data.holdout=4"], r"guard\.mode=off and data\.holdout=0"),
        (["guard.mode=early-stop"], r"guard\.mode=off"),
        (["data.augment=[crop-4]"], r"data\.augment: boxes follow a flip"),
        (["data.labels=8"], "labels and unlabelled are for one class"),
        (["method=fast-advprop", "method.mix=cutmix"], "mix, only_correct and targeted are for"),
        (["method=pgd-2", "method.targeted=true"], "mix, only_correct and targeted are for"),
        (["method=fast-advprop", "task.attack=class"], r"method\.reuse=false, which costs"),
        (["task.label_smoothing=0.1"], "label_smoothing is for classification"),
        (["task.name=classification", "task.attack=box"], "attack=box is for detection"),
    ],
)
def test_what_boxes_have_no_use_for_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("natural", *settings)


def test_task_and_data_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="detection does not fit digits, whose images have one"):
        train.run(tiny("natural", "data.name=digits", "data.augment=[]"), tmp_path / "a")
    classes = ["task.name=classification", "model.name=small-conv", "model.options={}"]
    with pytest.raises(ValueError, match=r"classification does not fit .* whose images have boxes"):
        train.run(tiny("natural", *classes), tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["natural", "fast-advprop"])
def test_eight_images_are_learned_by_heart_at_one_budget(tmp_path: Path, method: str) -> None:
    settings = [
        *("data.limit=8", "data.test_split=train", "data.augment=[]", "method.ball.eps=1/255"),
        "model.name=retinanet-r18",
        "model.options={width: 32, smallest_anchor: 12, head_norm: group}",
        "schedule={shape: cosine, warmup: 0.05}",
    ]
    run = train.run(tiny(method, *settings, passes=40), tmp_path / "run")
    assert run.results is not None
    assert run.results["budget"]["metered_passes"] == 40
    assert run.results["detection"]["map_50"] > 0.8  # 1.0 in both when this was written


def apart(*settings: str) -> Recipe:
    """Perturbations of signs, and Adam, would blow rounding up."""
    plain = ["optimizer={learning_rate: 0.01}", "method.ball.norm=l2", "method.shuffle=false"]
    return tiny("fast-advprop", "method.adversarial=0.25", *plain, *settings, passes=4)


def one_of_two(rank: int, port: int, folder: Path) -> None:
    become(rank, port)
    train.run(apart(), folder / "two")


@needs_gloo
@pytest.mark.slow
def test_two_processes_learn_boxes_as_two_parts_of_a_batch_do(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, tmp_path), 2)
    train.run(apart("engine.parts=2"), tmp_path / "one")
    one, two = (final_state(tmp_path / name) for name in ("one", "two"))
    assert one["updates"] == two["updates"] > 5
    assert one["budget"]["metered_passes"] == two["budget"]["metered_passes"]
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-4, atol=1e-5)
    found = Run.open(tmp_path / "two").results
    assert found is not None
    assert found["detection"]["images"]["count"] == 8
