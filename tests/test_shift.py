"""Images from another distribution: the benchmarks' folders, and figures in closed form."""

import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gratis.data import Images, shifted
from gratis.data.corruptions import COMMON, EXTRA, SEVERITIES
from gratis.data.folder import to_array
from gratis.data.shifted import Asked, opened
from gratis.evaluate.shift import (
    ALEXNET,
    ALEXNET_CLEAN,
    Answer,
    answer,
    corruption_figures,
    normalised,
)

CLASSES = ("n01", "n02", "n03")
PER_CLASS = 4
SIDE = 4
GRID = [(name, severity) for name in COMMON for severity in SEVERITIES]
GROUP_OF = {name: shifted.GROUPS[place] for name, place in zip(
    COMMON + EXTRA, [0] * 3 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4, strict=True
)}  # fmt: skip


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


def imagenet_c(root, names=COMMON, grouped=False):
    for name in random.sample(names, len(names)):  # no order of folders may matter
        for severity in SEVERITIES:
            place = root / GROUP_OF[name] if grouped else root
            write_cell(place / name / str(severity), wrong_of(name, severity))
    return root


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


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """An ImageNet-C, which no test changes."""
    return imagenet_c(tmp_path_factory.mktemp("c"))


@pytest.fixture
def own(benchmark, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(benchmark, tmp_path / "own")


# --- ImageNet-C


def test_every_cells_error_is_the_one_it_was_made_with(benchmark):
    found, shift = answers(Asked("imagenet-c", benchmark))
    assert list(found) == GRID
    assert {place: one.wrong for place, one in found.items()} == {
        place: wrong_of(*place) for place in GRID
    }
    assert all(one.images == 12 and not one.skipped for one in found.values())
    assert shift.partial == ()
    assert shift.about == {"source": str(benchmark), "preprocessing": "centre of 4 px, not resized"}
    figures = corruption_figures(found)
    by_name = {name: np.mean([wrong_of(name, s) / 12 for s in SEVERITIES]) for name in COMMON}
    assert figures["corruptions"] == pytest.approx(by_name)
    assert figures["mean_error"] == pytest.approx(np.mean(list(by_name.values())))
    assert figures["mean_of"] == 15
    assert figures["cells"]["fog"]["3"] == {
        "errors": wrong_of("fog", 3),
        "images": 12,
        "error": wrong_of("fog", 3) / 12,
        "ci95": figures["cells"]["fog"]["3"]["ci95"],
    }
    low, high = figures["cells"]["fog"]["3"]["ci95"]
    assert low < wrong_of("fog", 3) / 12 < high
    found = normalised(figures, 1 / 12)
    assert found["mce"] == pytest.approx(np.mean([by_name[n] / ALEXNET[n] for n in COMMON]))
    relative = [(by_name[n] - 1 / 12) / (ALEXNET[n] - ALEXNET_CLEAN) for n in COMMON]
    assert found["relative_mce"] == pytest.approx(np.mean(relative))


def test_groups_of_corruptions_are_looked_into(tmp_path):
    imagenet_c(tmp_path, COMMON + EXTRA, grouped=True)
    found, _ = answers(Asked("imagenet-c", tmp_path, corruptions=19))
    assert len(found) == 95
    assert {place: one.wrong for place, one in found.items()} == {
        (name, severity): wrong_of(name, severity)
        for name in COMMON + EXTRA
        for severity in SEVERITIES
    }


def test_the_figures_follow_the_folders_names(own):
    (own / "fog").rename(own / "aside")
    (own / "snow").rename(own / "fog")
    (own / "aside").rename(own / "snow")
    found, _ = answers(Asked("imagenet-c", own))
    assert [found["fog", s].wrong for s in SEVERITIES] == [wrong_of("snow", s) for s in SEVERITIES]
    assert [found["snow", s].wrong for s in SEVERITIES] == [wrong_of("fog", s) for s in SEVERITIES]


def test_what_lacks_is_refused_or_said(own):
    shutil.rmtree(own / "fog" / "3")
    shutil.rmtree(own / "snow")
    with pytest.raises(ValueError, match=r"lacks snow/1.*snow/5 and 1 more; --partial"):
        answers(Asked("imagenet-c", own))
    found, shift = answers(Asked("imagenet-c", own, partial=True))
    assert len(found) == 75 - 6
    assert shift.lacking
    assert shift.partial == ("lacks snow/1, snow/2, snow/3, snow/4, snow/5 and 1 more",)
    figures = corruption_figures(found)
    assert figures["mean_of"] == 14
    assert normalised(figures, None) == {}, "no mCE of a part"
    rest, shift = answers(Asked("imagenet-c", own, severities=(1, 2), partial=True))
    assert len(rest) == 28
    assert shift.partial[-1] == "severities 1, 2 alone"


def test_an_incomplete_cell_is_refused_or_said(own):
    (own / "frost" / "2" / "n02" / "0.png").unlink()
    with pytest.raises(ValueError, match="has 11 to 12 images a cell in place of 12"):
        answers(Asked("imagenet-c", own))
    found, shift = answers(Asked("imagenet-c", own, partial=True))
    assert found["frost", 2].images == 11
    assert "11 to 12 images" in shift.partial[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cell: (cell / "n02").rename(cell / "other"), "none of the run's 3 classes .*other"),
        (lambda cell: shutil.rmtree(cell / "n03"), "2 class folders, the run 3 .*none for n03"),
        (lambda cell: (cell / "n04").mkdir(), "none of the run's 3 classes .*n04"),
        (lambda cell: [p.unlink() for p in (cell / "n01").iterdir()], "without an image: n01"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_classes_must_be_the_runs(own, change, said, partial):
    change(own / "brightness" / "4")
    with pytest.raises(ValueError, match=said):
        answers(Asked("imagenet-c", own, partial=partial))


def test_a_folder_of_something_else_is_no_benchmark(tmp_path):
    write(tmp_path / "n01" / "0.png", 0)
    with pytest.raises(ValueError, match=r"lacks gaussian_noise/1.* 70 more$"):
        answers(Asked("imagenet-c", tmp_path, partial=True))


def test_damaged_files_are_counted_until_they_are_too_many(own):
    cell = own / "contrast" / "5"
    kept = wrong_of("contrast", 5)
    (cell / "n03" / "3.png").write_bytes(b"damaged")  # answered rightly before
    with opened(Asked("imagenet-c", own), clean(), None) as shift:
        (shown,) = [c for c in shift.cells if (c.corruption, c.severity) == ("contrast", 5)]
    for size in (1, 5, 12):
        found = answer(Told(), shown.batches(size), expected=len(shown))
        assert found == Answer(11, kept, skipped=1)
    assert found.error()["skipped"] == 1
    (cell / "n03" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 12 files in .*contrast/5 .*up to 10% are skipped"):
        answer(Told(), shown.batches(5), expected=len(shown))


def test_images_are_cropped_and_never_enlarged(own):
    image = Image.new("RGB", (SIDE + 4, SIDE + 2), (255, 255, 255))
    image.paste((20, 0, 0), (2, 1, 2 + SIDE, 1 + SIDE))
    image.save(own / "fog" / "1" / "n02" / "0.png")
    with opened(Asked("imagenet-c", own), clean(), None) as shift:
        (cell,) = [c for c in shift.cells if (c.corruption, c.severity) == ("fog", 1)]
        x = torch.cat([batch.x for batch in cell.batches(3)])
    assert (x[PER_CLASS] * 255 == torch.tensor([20, 0, 0])[:, None, None]).all()
    with pytest.raises(ValueError, match="is 4x4: smaller than the run's test images of 6 pixels"):
        answers(Asked("imagenet-c", own), clean(side=6))


def test_every_kind_of_file_is_read_as_clean_images_are(own):
    cell = own / "fog" / "1" / "n01"
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    pixels.convert("L").save(cell / "0.png")
    pixels.convert("CMYK").save(cell / "1.jpg")
    pixels.save(cell / "2.jpg", exif=turned, quality=95)
    pixels.convert("RGBA").save(cell / "3.png")
    (cell / "1.png").unlink()
    (cell / "2.png").unlink()
    for images, grey in ((clean(), False), (clean(channels=1), True)):
        with opened(Asked("imagenet-c", own), images, None) as shift:
            (found,) = [c for c in shift.cells if (c.corruption, c.severity) == ("fog", 1)]
            x = next(iter(found.batches(PER_CLASS))).x
        for i, name in enumerate(("0.png", "1.jpg", "2.jpg", "3.png")):
            with Image.open(cell / name) as image:
                assert (x[i] * 255 == torch.from_numpy(to_array(image, grey, SIDE, 0).copy())).all()


def test_a_limit_takes_the_same_images_of_every_cell(own):
    for severity in SEVERITIES:
        for label, name in enumerate(CLASSES):
            for i in range(PER_CLASS):
                write(own / "fog" / str(severity) / name / f"{i}.png", 4 * label + i)
    with opened(Asked("imagenet-c", own, limit=5), clean(), None) as shift:
        cells = [cell for cell in shift.cells if cell.corruption == "fog"]
        seen = [torch.cat([b.x[:, 0, 0, 0] for b in cell.batches(2)]).tolist() for cell in cells]
        labels = torch.cat([b.y for b in cells[0].batches(2)])
    assert [len(cell) for cell in cells] == [5] * 5
    assert seen == [seen[0]] * 5
    assert len(set(seen[0])) == 5
    assert len(labels.unique()) > 1
    assert shift.partial == ("at most 5 images a cell",)


def test_nothing_of_a_cell_is_held_before_it_is_read(benchmark):
    with opened(Asked("imagenet-c", benchmark), clean(), None) as shift:
        for cell in shift.cells:
            assert not [v for v in vars(cell).values() if isinstance(v, list)]


# --- CIFAR-C


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


# --- ImageNet-R and Stylized-ImageNet


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


# --- figures


def alexnets(images=50_000):
    """Cells whose errors have AlexNet's means."""
    found = {}
    for name, error in ALEXNET.items():
        total = round(error * 5 * images)
        assert total == pytest.approx(error * 5 * images, abs=1e-6), "a whole number of images"
        for severity in SEVERITIES:
            part = total // 5 + (severity <= total % 5)
            found[name, severity] = Answer(images, part)
    return found


def test_alexnets_own_cells_give_100(monkeypatch):
    monkeypatch.setattr("gratis.evaluate.shift.clopper_pearson", lambda *_: (0.0, 1.0))
    figures = corruption_figures(alexnets())
    found = normalised(figures, ALEXNET_CLEAN)
    assert found["mce"] == pytest.approx(1, abs=1e-12)
    assert found["relative_mce"] == pytest.approx(1, abs=1e-12)
    assert found["ce"] == pytest.approx(dict.fromkeys(COMMON, 1.0), abs=1e-12)
    assert figures["mean_error"] == pytest.approx(0.788993, abs=1e-6)


def test_alexnets_clean_error_is_what_torchvision_states_of_the_same_weights():
    from torchvision.models import AlexNet_Weights  # slow to import

    stated = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert round(1 - stated / 100, 3) == ALEXNET_CLEAN


def test_the_extra_four_never_enter_mce(monkeypatch):
    monkeypatch.setattr("gratis.evaluate.shift.clopper_pearson", lambda *_: (0.0, 1.0))
    extra = {(name, severity): Answer(50_000, 0) for name in EXTRA for severity in SEVERITIES}
    figures = corruption_figures({**extra, **alexnets()})
    assert normalised(figures, None)["mce"] == pytest.approx(1, abs=1e-12)
    assert figures["mean_error"] == pytest.approx(0.788993, abs=1e-6)
    assert figures["mean_of"] == 15
    assert figures["mean_error_19"] == pytest.approx(0.788993 * 15 / 19, abs=1e-6)
    assert "mean_error_19" not in corruption_figures(alexnets())


def test_answers_that_are_no_numbers_are_wrong():
    batch = (torch.zeros(3, 3, SIDE, SIDE), torch.tensor([0, 1, 2]))
    none = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    torch.nn.init.constant_(none[1].weight, torch.nan)
    assert answer(none, [batch], expected=3) == Answer(3, 3)
    masked = answer(none, [batch], expected=3, columns=torch.tensor([0, 1, 2]))
    assert masked == Answer(3, 3, 0, 3)


def test_a_cell_without_images_has_no_error():
    with pytest.raises(ValueError, match="no image"):
        Answer(0, 0).error()
