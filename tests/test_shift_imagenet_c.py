"""ImageNet-C: each cell's error, what lacks or is damaged, and how its files are read."""

import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gratis.data import shifted
from gratis.data.corruptions import COMMON, EXTRA, SEVERITIES
from gratis.data.decoding import to_array
from gratis.data.shifted import Asked, opened
from gratis.evaluate.shift import (
    ALEXNET,
    ALEXNET_CLEAN,
    Answer,
    answer,
    corruption_figures,
    normalised,
)
from tests.shifted_images import (
    CLASSES,
    GRID,
    PER_CLASS,
    SIDE,
    Told,
    answers,
    clean,
    small,
    write,
    write_cell,
    wrong_of,
)

__all__ = ["small"]  # a fixture, which every test has

GROUP_OF = {name: shifted.GROUPS[place] for name, place in zip(
    COMMON + EXTRA, [0] * 3 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4, strict=True
)}  # fmt: skip


def imagenet_c(root, names=COMMON, grouped=False):
    for name in random.sample(names, len(names)):  # no order of folders may matter
        for severity in SEVERITIES:
            place = root / GROUP_OF[name] if grouped else root
            write_cell(place / name / str(severity), wrong_of(name, severity))
    return root


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """An ImageNet-C, which no test changes."""
    return imagenet_c(tmp_path_factory.mktemp("c"))


@pytest.fixture
def own(benchmark, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(benchmark, tmp_path / "own")


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
