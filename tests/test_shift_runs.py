"""Runs shown images from elsewhere: the command, and what it leaves behind."""

import numpy as np
import pytest
import torch
from PIL import Image

from gratis import shifts, train
from gratis.cli import main
from gratis.data import shifted
from gratis.data.shifted import Asked
from gratis.evaluate.shift import ALEXNET
from gratis.names import parse_shift
from gratis.recipe import from_plain
from gratis.report.shifts import protocol
from gratis.run import Run
from gratis.training_data import load_split
from tests.recipes import tiny
from tests.reports import Page

CLASSES = ("cat", "dog")
FEW = ("gaussian_noise", "contrast")


def draw(directory, count, side=32, seed=0):
    """Noisy images of each class: cats are red, dogs are green."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (directory / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(directory / name / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("animals")
    draw(root / "train", 10)
    draw(root / "test", 6, seed=1)
    return root


def settings(data):
    return (
        f"data={{name: folder, root: {data}, batch_size: 10, holdout: 0}}",
        "check.images=4",
        "guard.mode=off",
        "evaluation.attacks=[pgd-1]",
        "evaluation.limit=4",
    )


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    torch.manual_seed(0)
    recipe = tiny("natural", *settings(data), passes=2)
    return train.run(recipe, tmp_path_factory.mktemp("runs") / "animals").path


@pytest.fixture
def run(trained, monkeypatch):
    """A run as it was after training; two corruptions stand for all."""
    monkeypatch.setattr(shifted, "chosen", lambda count: FEW)
    before = (trained / "results.json").read_bytes()
    yield Run.open(trained)
    (trained / "results.json").write_bytes(before)


GENERATED = Asked("corruptions", severities=(1, 3))


# --- the command


def test_generated_corruptions_alone(run, capsys):
    attacked = run.results["evaluations"]
    command = ["evaluate", str(run.path), "--shift", "corruptions=generated", "--limit", "10"]
    assert main([*command, "--severities", "3", "1"]) == 0
    results = run.results
    assert results["evaluations"] == attacked, "nothing was attacked"
    (entry,) = results["shifts"]
    assert entry["shift"] == "corruptions"
    assert entry["source"] == "generated"
    assert entry["library"] == "imagecorruptions-imaug"
    assert entry["image_size"] == [32, 32]
    assert entry["checkpoint"] == "last"
    assert entry["images_per_cell"] == 10
    assert entry["partial"] == ["severities 1, 3 alone", "at most 10 images a cell"]
    assert list(entry["cells"]) == list(FEW)
    assert list(entry["cells"]["contrast"]) == ["1", "3"]
    errors = [cell["error"] for row in entry["cells"].values() for cell in row.values()]
    assert entry["mean_error"] == pytest.approx(sum(errors) / 4)
    assert entry["clean"]["images"] == 10
    assert "mce" not in entry
    assert not run.unfinished.exists()

    said = capsys.readouterr().out
    assert "gaussian noise" in said
    assert f"mean error: {100 * entry['mean_error']:.1f}% over 2 corruptions" in said
    assert "do not compare with published" in said
    assert "robust %" not in said
    page = (run.path / "report.html").read_text()
    text = Page(page).text
    assert "Images from elsewhere" in text
    assert "imagecorruptions-imaug" in text
    assert "Partial: severities 1, 3 alone and at most 10 images a cell." in text
    assert "--shift corruptions=generated --severities 1 3 --limit 10" in text
    assert f"{100 * errors[0]:.1f}%" in text

    assert main([*command, "--severities", "5"]) == 0
    (again,) = run.results["shifts"]
    assert list(again["cells"]["contrast"]) == ["5"], "the same shift replaces"


def test_a_part_of_a_shift_stands_beside_all_of_it(run):
    (whole,) = shifts.shift_run(run, [Asked("corruptions")])
    for severities in ((1,), (2,)):
        (part,) = shifts.shift_run(run, [Asked("corruptions", severities=severities)])
    assert run.results["shifts"] == [whole, part], "a part replaces a part"
    assert part["partial"] == ["severities 2 alone"]
    assert "severities 2 alone" in protocol(part)
    assert whole["fingerprint"] == run.results["data"]["fingerprint"]
    assert (whole["device"], whole["versions"]) == tuple(
        run.results[key] for key in ("device", "versions")
    )
    (again,) = shifts.shift_run(run, [Asked("corruptions")])
    assert run.results["shifts"] == [again, part]


def test_with_an_attack_both_are_done(run, capsys):
    command = ["evaluate", str(run.path), "--attack", "pgd-2", "--shift", "corruptions=generated"]
    assert main([*command, "--severities", "1"]) == 0
    assert [entry["attack"] for entry in run.results["evaluations"]] == ["pgd-1", "pgd-2"]
    assert run.results["shifts"][0]["images_per_cell"] == 12
    said = capsys.readouterr().out
    assert "robust %" in said
    assert "error % at severity" in said


def test_all_benchmarks_stand_side_by_side(run, tmp_path, monkeypatch):
    for name in shifted.COMPLETE:
        monkeypatch.setitem(shifted.COMPLETE, name, 6)
    monkeypatch.setattr(shifted, "IMAGENET_R_CLASSES", 1)
    for name in FEW:
        for severity in (1, 2):
            draw(tmp_path / "c" / name / str(severity), 3)
    draw(tmp_path / "s" / "val", 3)
    draw(tmp_path / "r", 6)
    for path in (tmp_path / "r" / "dog").iterdir():
        path.unlink()
    (tmp_path / "r" / "dog").rmdir()
    places = [f"imagenet-c={tmp_path / 'c'}", f"stylized={tmp_path / 's'}"]
    places += [f"imagenet-r={tmp_path / 'r'}"]
    words = [word for place in places for word in ("--shift", place)]
    assert main(["evaluate", str(run.path), *words, "--severities", "1", "2"]) == 0
    by_name = {entry["shift"]: entry for entry in run.results["shifts"]}
    assert list(by_name) == ["imagenet-c", "stylized", "imagenet-r"]
    rendition = by_name["imagenet-r"]
    assert rendition["accuracy"]["accuracy"] == 1, "one class alone is left to answer"
    assert rendition["classes"] == 1
    assert rendition["clean"]["images"] == 6, "those of its class"
    assert rendition["gap"] == rendition["clean"]["accuracy"] - 1
    assert rendition["unmasked"]["accuracy"] < 1 or rendition["unmasked"]["correct"] == 6
    assert by_name["stylized"]["clean"]["images"] == 12
    assert "unmasked" not in by_name["stylized"]
    text = Page((run.path / "report.html").read_text()).text
    for said in ("ImageNet-C", "Stylized-ImageNet", "ImageNet-R", "accuracy unmasked", "gap:"):
        assert said in text


def test_files_of_generated_images_give_their_errors_and_an_mce(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(shifted.COMPLETE, "imagenet-c", 12)
    monkeypatch.setattr("gratis.evaluate.shift.COMMON", FEW)
    images = load_split(from_plain(run.recipe).data, "test")
    with shifted.opened(Asked("corruptions"), images, None) as made:
        for cell in made.cells:
            place = tmp_path / "noise" / cell.corruption / str(cell.severity)
            for number, (x, y) in enumerate(zip(*next(cell.batches(12)), strict=True)):
                (place / CLASSES[y]).mkdir(parents=True, exist_ok=True)
                pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(place / CLASSES[y] / f"{number}.png")
    words = ["--shift", "corruptions=generated", "--shift", f"imagenet-c={tmp_path}"]
    assert main(["evaluate", str(run.path), *words]) == 0
    generated, stored = run.results["shifts"]
    assert stored["cells"] == generated["cells"]
    assert "mce" not in generated
    assert "partial" not in stored
    ce = [stored["corruptions"][name] / ALEXNET[name] for name in FEW]
    assert stored["mce"] == pytest.approx(sum(ce) / 2)
    said = capsys.readouterr().out
    assert f"mCE: {50 * sum(ce):.1f}%, normalised by AlexNet" in said
    page = Page((run.path / "report.html").read_text())
    assert f"{50 * sum(ce):.1f}%, normalised by AlexNet" in page.text
    assert f"{100 * ce[0]:.1f}%" in page.text
    assert len([head for head in page.all("th") if "AlexNet" in (head.get("title") or "")]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shift", "imagenet-d=x"], "no shift 'imagenet-d' (did you mean"),
        (["--shift", "imagenet-c"], "write imagenet-c=DIR"),
        (["--shift", "imagenet-c=generated"], "not those of a benchmark"),
        (["--shift", "corruptions=there"], "not those of a benchmark"),
        (["--shift", "imagenet-c=nowhere"], "nowhere is no directory"),
        (["--shift", "corruptions=generated"] * 2, "given twice"),
        (["--severities", "1"], "--severities goes with --shift"),
        (["--partial"], "--partial goes with --shift"),
        (["--corruptions", "19"], "--corruptions goes with --shift"),
    ],
)
def test_wrong_words_are_answered(run, words, said, capsys):
    assert main(["evaluate", str(run.path), *words]) == 2
    assert said in capsys.readouterr().err
    assert "shifts" not in run.results


def test_grey_and_tiny_images_are_refused(tmp_path, capsys):
    made = train.run(tiny("natural", "guard.mode=off", passes=1), tmp_path / "digits")
    assert main(["evaluate", str(made.path), "--shift", "corruptions=generated"]) == 2
    assert "these are grey" in capsys.readouterr().err


def test_torchruns_other_processes_leave_it_to_the_first(run, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert main(["evaluate", str(run.path), "--shift", "corruptions=generated"]) == 0
    assert "shifts" not in run.results


# --- the run directory


def test_an_interrupted_evaluation_goes_on_with_its_cell(run, monkeypatch):
    whole = shifts.shift_run(run, [GENERATED])[0]
    asked, real = [], shifts.answer

    def answer(*given, **named):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(named["expected"])
        return real(*given, **named)

    monkeypatch.setattr(shifts, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        shifts.shift_run(run, [GENERATED])
    assert list(run.unfinished.rglob("cells.json"))
    monkeypatch.setattr(shifts, "answer", lambda *g, **n: asked.append(1) or real(*g, **n))
    del asked[:]
    (again,) = shifts.shift_run(run, [GENERATED])
    assert len(asked) == 2, "of five cells, the clean images among them, three were there"
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert not run.unfinished.exists()


def test_other_questions_do_not_take_what_was_kept(run, monkeypatch):
    real = shifts.answer
    monkeypatch.setattr(shifts, "merge_shift", None)  # stops when every cell is answered
    with pytest.raises(TypeError):
        shifts.shift_run(run, [GENERATED])
    monkeypatch.undo()
    monkeypatch.setattr(shifted, "chosen", lambda count: FEW)
    asked = []
    monkeypatch.setattr(shifts, "answer", lambda *g, **n: asked.append(1) or real(*g, **n))
    shifts.shift_run(run, [Asked("corruptions", severities=(1, 3), limit=4)])
    assert len(asked) == 5
    shifts.shift_run(run, [Asked("corruptions", severities=(1, 2, 3))])
    assert len(asked) == 5 + 2, "severities that were there are not asked for again"


def test_the_outcome_does_not_depend_on_the_batch(run, monkeypatch):
    (whole,) = shifts.shift_run(run, [GENERATED])
    real = shifts.answer
    sizes = []

    def answer(model, batches, **named):
        def counted():
            for batch in batches:
                sizes.append(len(batch.y))
                yield batch

        return real(model, counted(), **named)

    monkeypatch.setattr(shifts, "answer", answer)
    recipe = run.path / "recipe.yaml"
    before = recipe.read_text()
    recipe.write_text(before.replace("batch_size: 10", "batch_size: 5"))
    (small,) = shifts.shift_run(run, [GENERATED])
    recipe.write_text(before)
    assert max(sizes) == 5
    assert small["cells"] == whole["cells"]


def test_names_of_shifts():
    assert parse_shift("imagenet-c=some/dir=odd") == ("imagenet-c", "some/dir=odd")
    assert parse_shift("corruptions=generated") == ("corruptions", None)
