"""A detector's whole run: judged, judged again, on corrupted images too, shown, exported."""

import json
import re
import shutil
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
from gratis.data.corruptions import COMMON, corrupted
from gratis.data.detection import load_coco, shapes
from gratis.data.scenes import Scenes, letterboxed
from gratis.data.shifted import Asked
from gratis.detection import coco_c
from gratis.evaluate.detection import average_precision
from gratis.recipe import from_plain
from gratis.reproduce import papers
from gratis.reproduce.papers import Scale
from gratis.reproduce.rows import reproduce
from gratis.run import Run
from gratis.training_data import load_split
from gratis.unfinished import Unfinished
from tests.coco_trees import small
from tests.detection_recipes import SHAPES, tiny

FEW = ("gaussian_noise", "fog", "contrast")


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


def test_evaluating_again_gives_the_same(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    before = run.results
    assert before is not None
    (found,) = evaluate_run(run, question(from_plain(run.recipe)))
    assert {**found, "seconds": 0} == {**before["detection"], "seconds": 0}
    assert run.results is not None
    assert run.results["detection"] == found
    assert evaluate_run(run, question(from_plain(run.recipe)), share=(1, 2)) == []


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
