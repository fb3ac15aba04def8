"""A detector's whole run: trained, judged, resumed, judged again, shown; and what is refused."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gratis import assess, shifts, train
from gratis.asked import question
from gratis.assess import evaluate_run
from gratis.cli import main
from gratis.data import Loader
from gratis.data.corruptions import COMMON, corrupted
from gratis.data.detection import load_coco, shapes
from gratis.data.scenes import Scenes, letterboxed
from gratis.data.shifted import Asked
from gratis.detection import coco_c
from gratis.evaluate.detection import average_precision
from gratis.recipe import Recipe, from_plain, override
from gratis.report import write_report
from gratis.reproduce import papers
from gratis.reproduce.papers import Scale
from gratis.reproduce.rows import reproduce
from gratis.run import Run
from gratis.training_data import load_split
from gratis.unfinished import Unfinished
from tests.coco_trees import small, turned_boxes
from tests.test_distributed import become, needs_gloo
from tests.test_train import assert_same, final_state

SHAPES = "gratis.data.detection:shapes"
FEW = ("gaussian_noise", "fog", "contrast")


def tiny(method: str = "natural", *settings: str, passes: float = 1.5) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny-boxes",
        "task": {"name": "detection"},
        "data": {"name": SHAPES, "batch_size": 8, "holdout": 0, "limit": 24, "augment": ["flip"]},
        "model": {
            "name": "tests.tiny_detector:build",
            "mean": [0.5],
            "std": [0.25],
        },
        "method": {"name": method, "ball": {"norm": "linf", "eps": 0.02}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "budget": {"passes": passes},
        "guard": {"mode": "off"},
        "engine": {"device": "cpu"},
        "evaluation": {"limit": 8, "batch_size": 4},
    }
    return from_plain(override(values, settings))


@pytest.fixture
def few_corruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that take no time."""
    monkeypatch.setattr("gratis.data.shifted.chosen", lambda count: FEW)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of Fast AdvProp on the shapes; tests that write take a copy."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("boxes") / "run"
    return train.run(tiny("fast-advprop", "method.adversarial=0.25"), out)


def copied(run: Run, to: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, to / "run")))


def test_a_run_holds_its_precision_and_how_it_was_counted(finished: Run) -> None:
    results = finished.results
    assert results is not None
    assert results["evaluations"] == []
    found, budget = results["detection"], results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"] <= 1.5
    assert found["images"] == {"split": "test", "start": 0, "count": 8}
    assert found["trained_on"] is False
    assert found["input_pixels"] == 64
    assert found["judge"].startswith("faster-coco-eval ")
    assert 0 <= found["map"] <= found["map_50"] <= 1
    assert found["map_large"] is None  # no rectangle has 96 x 96 pixels
    judged = sum(len(boxes) for boxes in shapes("test").select(torch.arange(8)).truth)
    assert found["boxes"] == {"judged": judged, "crowds": 0, "clipped": 0, "degenerate": 0}
    steps = [record for record in finished.log() if record["kind"] == "step"]
    assert len(steps) == budget["updates"]
    epochs = [record for record in finished.log() if record["kind"] == "epoch"]
    assert epochs
    assert all("train_accuracy" not in record for record in epochs)


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


def test_evaluating_again_gives_the_same(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    before = run.results
    assert before is not None
    (found,) = evaluate_run(run, question(from_plain(run.recipe)))
    assert {**found, "seconds": 0} == {**before["detection"], "seconds": 0}
    assert run.results is not None
    assert run.results["detection"] == found
    assert evaluate_run(run, question(from_plain(run.recipe)), share=(1, 2)) == []


def test_a_run_that_was_interrupted_goes_on_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny("fast-advprop", "method.adversarial=0.25", "engine.checkpoint_seconds=0")
    whole = train.run(recipe, tmp_path / "whole")
    saved, out = Run.save_checkpoint, tmp_path / "parts"

    def stop(self: Run, name: str, state: dict[str, Any]) -> None:
        saved(self, name, state)
        if state["updates"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train.run(recipe, out)
    monkeypatch.undo()
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


# --- corrupted images


def parts(finished: Run) -> tuple[torch.nn.Module, Scenes]:
    recipe = from_plain(finished.recipe)
    images = load_split(recipe.data, "test").select(torch.arange(4))
    assert isinstance(images, Scenes)
    return assess.trained(recipe, images, finished.load_checkpoint()[0]), images


def test_mpc_is_the_mean_over_all_cells_and_rpc_its_share_of_clean(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = parts(finished)
    given = iter([0.5, *np.linspace(0.1, 0.4, 75).tolist()])

    class Given:
        def __init__(self, overall: float) -> None:
            self.overall = overall

    monkeypatch.setattr("gratis.detection.average_precision", lambda *_, **__: Given(next(given)))
    entry, _ = coco_c(
        model,
        images,
        Asked("coco-c"),
        4,
        lambda question: Unfinished.of(tmp_path, question),
        lambda done, total, note: None,
    )
    assert entry["clean_map"] == 0.5
    assert entry["mpc"] == pytest.approx(0.25)
    assert entry["rpc"] == pytest.approx(0.5)
    assert entry["mpc_cells"] == 75
    assert list(entry["maps"]) == list(COMMON)
    assert all(list(row) == ["1", "2", "3", "4", "5"] for row in entry["maps"].values())
    assert "partial" not in entry


@pytest.mark.usefixtures("few_corruptions")
def test_generated_cells_are_those_of_the_flat_loop(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    (entry,) = shifts.shift_run(run, [Asked("coco-c", severities=(3,), limit=4)])
    model, images = parts(finished)
    for name in FEW:
        squares = [
            letterboxed(Image.fromarray(corrupted(images.original(i), name, 3)), 64)
            for i in range(4)
        ]
        x = torch.tensor(np.stack(squares)) / 255
        flat = average_precision(model, images, 3, pixels=lambda part, x=x: x[part])
        assert entry["maps"][name]["3"] == flat.overall
    assert entry["source"] == "generated"
    assert entry["partial"] == ["severities 3 alone", "at most 4 images a cell"]
    assert run.results is not None
    assert run.results["shifts"] == [entry]
    assert not run.unfinished.exists()


@pytest.mark.usefixtures("few_corruptions")
def test_an_interrupted_shift_goes_on_with_the_cell_it_was_at(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished, tmp_path)
    asked = [Asked("coco-c", severities=(1,), limit=2)]
    judged, counts = average_precision, [0]

    def stopping(*given: Any, **named: Any) -> Any:
        counts[0] += 1
        if counts[0] == 3:
            raise KeyboardInterrupt
        return judged(*given, **named)

    monkeypatch.setattr("gratis.detection.average_precision", stopping)
    with pytest.raises(KeyboardInterrupt):
        shifts.shift_run(run, asked)
    assert run.results is not None
    assert "shifts" not in run.results
    shifts.shift_run(run, asked)
    assert counts[0] == 1 + 4  # the third was asked twice, of the clean ones and 3 corruptions


@pytest.mark.usefixtures("few_corruptions")
def test_coco_c_from_files_equals_the_generated_one(tmp_path: Path) -> None:
    root = small(tmp_path / "coco")
    recipe = tiny(
        "natural", "data.name=coco", f"data.root={root}", "data.image_size=64", "data.limit=8"
    )
    run = train.run(recipe, tmp_path / "run")
    images, places = load_coco(root, "test", 64), tmp_path / "corrupted"
    for name in FEW:
        folder = places / name / "2"
        folder.mkdir(parents=True)
        for place, path in enumerate(images.paths):
            made = corrupted(images.original(place), name, 2)
            Image.fromarray(made).save(folder / path.name)
    (generated,) = shifts.shift_run(run, [Asked("coco-c", severities=(2,))])
    (read,) = shifts.shift_run(run, [Asked("coco-c", places, severities=(2,))])
    assert read["maps"] == generated["maps"]
    assert read["source"] == str(places)
    with pytest.raises(ValueError, match=r"lacks gaussian_noise/1, .* --partial evaluates"):
        shifts.shift_run(run, [Asked("coco-c", places)])
    (part,) = shifts.shift_run(run, [Asked("coco-c", places, partial=True)])
    assert part["maps"] == generated["maps"]
    assert part["lacking"] is True
    (places / "fog" / "2" / images.paths[0].name).unlink()
    with pytest.raises(ValueError, match=r"fog/2 lacks 1 of 12 images"):
        shifts.shift_run(run, [Asked("coco-c", places, severities=(2,))])
    Image.new("RGB", (9, 9)).save(places / "fog" / "2" / images.paths[0].name)
    with pytest.raises(ValueError, match=r"is 9x9, the image that its boxes .* 80x60"):
        shifts.shift_run(run, [Asked("coco-c", places, severities=(2,))])


# --- the command line and the page


@pytest.mark.usefixtures("few_corruptions")
def test_the_command_line_judges_again_shows_and_refuses(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path)
    assert main(["evaluate", str(run.path), "--limit", "4"]) == 0
    said = capsys.readouterr().out
    assert "mean average precision: 4 test images fitted into 64 px" in said
    assert "robust:" not in said
    shift = ["--shift", "coco-c=generated", "--severities", "5", "--limit", "2"]
    assert main(["evaluate", str(run.path), *shift]) == 0
    said = capsys.readouterr().out
    assert "mPC: " in said
    assert "rPC: " in said or "clean mAP: 0.0" in said
    page = (run.path / "report.html").read_text("utf-8")
    assert "Boxes found" in page
    assert "judged by the boxes that each finds in 4 test images" in page
    assert "Not evaluated yet" not in page
    assert "gaussian noise" in page
    for words, message in [
        (["--attack", "pgd-2"], "finds boxes, which are judged by mean average precision"),
        (["--eps", "0.1"], "finds boxes"),
        (["--shift", "corruptions=generated"], "this run finds boxes; coco-c is for runs"),
    ]:
        assert main(["evaluate", str(run.path), *words]) == 2
        assert message in capsys.readouterr().err
    results = json.loads((run.path / "results.json").read_text())
    assert [entry["shift"] for entry in results["shifts"]] == ["coco-c"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=trades-4"], r"method\.name: trades has no use for boxes; .* fast-advprop"),
        (["data.holdout=4"], r"guard\.mode=off and data\.holdout=0"),
        (["guard.mode=early-stop"], r"guard\.mode=off"),
        (["data.augment=[crop-4]"], r"data\.augment: boxes follow a flip"),
        (["data.labels=8"], "labels and unlabelled are for one class"),
        (["method=fast-advprop", "method.mix=cutmix"], "mix and only_correct are for one class"),
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


def test_what_attacks_classes_says_so_of_a_run_that_finds_boxes(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = copied(finished, tmp_path), str(tmp_path / "out")
    for words in (["verify"], ["pictures"], ["export", "--as", "robustbench", "--out", out]):
        assert main([words[0], str(run.path), *words[1:]]) == 2
        assert "finds boxes, which are judged by mean average" in capsys.readouterr().err
    assert main(["export", str(run.path), "--as", "onnx", "--out", out]) == 2
    assert "one that finds boxes is exported --as weights" in capsys.readouterr().err
    assert main(["export", str(run.path), "--as", "weights", "--out", out]) == 0
    assert "net.head.classification_head.cls_logits.weight" in torch.load(out, weights_only=True)


@pytest.mark.usefixtures("few_corruptions")
@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_the_papers_table_is_filled(tmp_path: Path, scale: Scale) -> None:
    table = papers.read("advprop-table7")
    small_net = ["model.name=tests.tiny_detector:build", "model.options={}", "model.aux_groups=1"]
    no_files = [f"data.name={SHAPES}", "data.image_size=null", "data.stored=null"]
    few = ["data.limit=8", "data.augment=[]"]
    budget = ["budget.data_passes=1", "evaluation.limit=2", "engine.device=cpu"]

    @contextmanager
    def quiet(label: str) -> Iterator[Callable[..., None]]:
        yield lambda stage, done, total, note: None

    given = (*small_net, *no_files, *few, *budget)
    record, done = reproduce(table, scale, tmp_path, rows=table.rows, given=given, bar=quiet)
    assert done
    vanilla, fast = (row["cells"] for row in record["rows"])
    assert (vanilla["map"]["printed"], fast["coco-c"]["printed"]) == (35.8, 19.0)
    results = Run.open(tmp_path / "fast-advprop").results
    assert results is not None
    assert fast["map"]["measured"] == 100 * results["detection"]["map"]
    assert re.match(r"2 (test|train) images fitted into 64 px", fast["map"]["of"])
    if scale == "smoke":
        assert "75 corruptions would take longer" in fast["coco-c"]["why"]
    else:
        assert fast["coco-c"]["measured"] == 100 * results["shifts"][0]["mpc"]
        assert fast["coco-c"]["of"].startswith("mean of 15 cells of COCO-C, 2 images a cell")


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


def test_a_run_may_begin_with_anothers_weights_and_other_classes(
    finished: Run, tmp_path: Path
) -> None:
    start = [f"model.start={finished.path}", "data.limit=8"]
    same = train.run(tiny("natural", *start), tmp_path / "same")
    assert same.results is not None
    assert same.results["start"]["new_head"] is None
    root = small(tmp_path / "coco", ["train"])  # two classes, not three
    of_files = [
        "data.name=coco",
        f"data.root={root}",
        "data.image_size=64",
        "data.test_split=train",
    ]
    other = train.run(tiny("natural", *of_files, *start), tmp_path / "other")
    assert other.results is not None
    assert other.results["start"]["new_head"] == "head.classification_head.cls_logits"


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
