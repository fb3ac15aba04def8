"""Corruptions made here: what each image becomes is a function of the image alone."""

import numpy as np
import pytest
import torch
from imagecorruptions import get_corruption_names

from gratis.data import Images, corruptions
from gratis.data.cells import GeneratedCell
from gratis.data.corruptions import COMMON, EXTRA, corrupted
from gratis.data.shifted import Asked, opened


def pictures(count=5, side=32, seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 250, (count, 3, 4, 4)), np.ones((side // 4, side // 4)))
    return (smooth + rng.integers(0, 6, smooth.shape)).astype(np.uint8)


def images(count=5, side=32, seed=0):
    return Images(
        torch.from_numpy(pictures(count, side, seed)),
        torch.arange(count) % 2,
        ("a", "b"),
        "drawn",
        "test",
    )


def test_the_names_are_the_librarys_in_its_order():
    assert list(COMMON) == get_corruption_names("common")
    assert list(EXTRA) == get_corruption_names("validation")
    assert corruptions.chosen(15) == COMMON
    assert corruptions.chosen(19) == COMMON + EXTRA


# compiling glass blur takes seconds of every process
each = [
    pytest.param(n, marks=pytest.mark.slow if n == "glass_blur" else ()) for n in COMMON + EXTRA
]


@pytest.mark.parametrize("name", each)
def test_what_an_image_becomes_depends_on_nothing_around_it(name):
    image, other = np.ascontiguousarray(pictures(2).transpose(0, 2, 3, 1))
    first = corrupted(image, name, 3)
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert (first != image).any()
    np.random.seed(5)
    corrupted(other, name, 3)
    before = np.random.get_state()[1].copy()
    assert (corrupted(image.copy(), name, 3) == first).all()
    assert (np.random.get_state()[1] == before).all(), "the program's own draws go on"
    assert (corrupted(image, name, 4) != first).any()


def test_every_image_draws_for_itself():
    flat = np.full((2, 32, 32, 3), 128, np.uint8)
    flat[1, 0, 0, 0] = 129
    noise = [corrupted(image, "gaussian_noise", 1).astype(int) - 128 for image in flat]
    assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] < 0.1
    assert noise[0].std() == pytest.approx(0.08 * 255, rel=0.1)  # severity 1 of ImageNet-C


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "frost", "jpeg_compression"])
def test_cells_do_not_depend_on_batches_and_order(name):
    clean = images()
    whole = torch.cat([batch.x for batch in GeneratedCell(name, 2, clean).batches(5)])
    assert whole.dtype == torch.float32
    for size in (1, 2, 3):
        batches = list(GeneratedCell(name, 2, clean).batches(size))
        assert max(len(batch.x) for batch in batches) <= size
        assert (torch.cat([batch.x for batch in batches]) == whole).all()
        assert (torch.cat([batch.y for batch in batches]) == clean.y).all()
    back = clean.select(torch.arange(4, -1, -1))
    turned = torch.cat([batch.x for batch in GeneratedCell(name, 2, back).batches(2)])
    assert (turned.flip(0) == whole).all()
    alone = corrupted(pictures()[3].transpose(1, 2, 0), name, 2)
    assert (whole[3] * 255 == torch.from_numpy(alone.transpose(2, 0, 1))).all()


@pytest.mark.slow
def test_other_processes_make_the_same(monkeypatch):
    clean = images(20)
    alone = torch.cat([batch.x for batch in GeneratedCell("snow", 4, clean).batches(7)])
    monkeypatch.setattr(corruptions, "PIXELS_A_PROCESS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with opened(Asked("corruptions", severities=(4,)), clean, None) as shift:
        (cell,) = [cell for cell in shift.cells if cell.corruption == "snow"]
        assert cell.pool is not None
        together = torch.cat([batch.x for batch in cell.batches(7)])
    assert (together == alone).all()


def test_small_work_starts_no_process():
    with opened(Asked("corruptions"), images(), None) as shift:
        assert {cell.pool for cell in shift.cells} == {None}
        assert len(shift.cells) == 75


@pytest.mark.parametrize(
    ("shape", "said"), [((1, 32, 32), "grey"), ((3, 31, 40), "32 pixels or more.*31x40")]
)
def test_what_the_library_does_not_take(shape, said):
    given = Images(torch.zeros(2, *shape), torch.tensor([0, 1]), ("a", "b"), "drawn", "test")
    with pytest.raises(ValueError, match=said), opened(Asked("corruptions"), given, None):
        pass


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(corruptions, "PACKAGE", "not-installed-here")
    with pytest.raises(ValueError, match=r"pip install 'gratis\[corruptions\]'"):
        corruptions.library()


def test_the_outcome_says_what_made_it():
    with opened(Asked("corruptions", severities=(5, 1), limit=2), images(2), None) as shift:
        assert shift.about["source"] == "generated"
        assert shift.about["library"] == "imagecorruptions-imaug"
        assert shift.about["version"] == corruptions.library()
        assert shift.about["image_size"] == [32, 32]
        assert shift.partial == ("severities 1, 5 alone", "at most 2 images a cell")
        assert [cell.severity for cell in shift.cells[:2]] == [1, 5]


@pytest.mark.parametrize(
    "given",
    [{"severities": (1, 6)}, {"severities": (2, 2)}, {"severities": ()}, {"corruptions": 16}],
)
def test_impossible_questions(given):
    with pytest.raises(ValueError, match=r"1 to 5|15 corruptions"):
        Asked("corruptions", **given)
