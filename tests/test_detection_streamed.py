"""Detection's training images read from disk: the batches that memory gives, and its errors."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from gratis.data import Loader, StreamLoader
from gratis.data import scenes as scenes_module
from gratis.data.detection import load_coco
from gratis.data.scenes import fitted
from gratis.data.streamed import Keeping, Stored
from gratis.data.streamed_scenes import StreamedScenes, training_scenes
from tests.coco_trees import small, turned_boxes, write_split
from tests.detection_recipes import of_tree
from tests.test_detection_data import BAD, changed, damage

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
