"""COCO trees as they are and as they should not be; boxes that follow their pixels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gratis.data import scenes as scenes_module
from gratis.data.detection import load_coco, shapes
from gratis.data.scenes import Scenes, fitted, letterboxed
from tests.coco_trees import small, write_json, write_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small(tmp_path)


def changed(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    path = root / "annotations" / f"instances_{split}2017.json"
    known = json.loads(path.read_text())
    change(known)
    write_json(root, split, known)


def test_categories_count_from_0_in_the_order_of_their_ids(root: Path) -> None:
    found = load_coco(root, "train", 64)
    assert found.classes == ("cat", "dog")
    labels = [int(rows[0, 4]) for rows in found.y[:11]]
    assert labels == [0, 0, 1] * 3 + [0, 0]
    assert found.name == root.name
    assert len(found) == len(found.paths) == 12
    assert found.skipped == ()


def test_boxes_of_a_letterboxed_image_in_closed_form(root: Path) -> None:
    found = load_coco(root, "train", 40)
    assert found.x.shape == (12, 3, 40, 40)
    # image 1 is 80 x 60: scaled by one half, its box [1, 2, 20, 16] too
    assert found.fitted(0) == (30, 40)
    assert found.y[0, 0].tolist() == [0.5, 1, 10.5, 9, 0]
    assert found.x[0, :, 30:].max() == 0
    assert found.x[0, :, :30].float().mean() > 50
    # image 2 is 40 x 64: by 40 / 64, so 25 pixels wide
    assert found.fitted(1) == (40, 25)
    assert found.y[1, 0].tolist() == [1.25, 2.5, 13.75, 12.5, 0]
    assert found.x[1, :, :, 25:].max() == 0
    with Image.open(found.paths[0]) as image:
        pixels = np.asarray(image.resize((40, 30), Image.Resampling.BILINEAR))
    assert torch.equal(found.x[0, :, :30], torch.tensor(pixels.transpose(2, 0, 1)))


def test_each_axis_is_scaled_by_what_its_pixels_were() -> None:
    assert fitted(333, 500, 64) == (43, 64)  # 42.6: rounded, so not scaled by 64 / 500
    assert fitted(3, 1000, 64) == (1, 64)
    corner = np.zeros((333, 500, 3), dtype=np.uint8)
    assert letterboxed(Image.fromarray(corner + 9), 64)[:, :43].min() == 9


def test_the_whole_image_as_a_box_ends_where_its_pixels_end(tmp_path: Path) -> None:
    write_split(
        tmp_path,
        "train",
        [(1, 500, 333), (2, 50, 50)],
        [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 500, 333]}],
    )
    found = load_coco(tmp_path, "train", 64)
    assert found.y[0, 0].tolist() == [0, 0, 64, 43, 0]


def test_a_crowd_is_judged_against_but_not_learned_from(root: Path) -> None:
    found = load_coco(root, "train", 64)
    assert (found.y[1, :, 4] != -1).sum() == 1
    assert found.truth[1][:, 6].tolist() == [0, 1]
    assert found.truth[1][1, :4].tolist() == [0, 0, 40, 30]
    assert found.truth[0][0, 5] == 20 * 16  # no area given: the box's


def test_an_image_without_boxes_stays(root: Path) -> None:
    found = load_coco(root, "train", 64)
    assert (found.y[11, :, 4] == -1).all()
    assert len(found.truth[11]) == 0


def test_boxes_are_cut_to_the_image_and_counted(root: Path) -> None:
    def beyond(known: dict[str, Any]) -> None:
        boxes = [[70, 50, 30, 30], [-0.4, 0, 20, 20], [90, 0, 10, 10], [5, 5, 0, 8]]
        known["annotations"] += [
            {"id": 100 + n, "image_id": 1, "category_id": 7, "bbox": box}
            for n, box in enumerate(boxes)
        ]

    changed(root, beyond)
    found = load_coco(root, "train", 80)
    assert (found.clipped, found.degenerate) == (1, 2)
    alone = [found.select(torch.tensor([place])) for place in range(len(found))]
    assert [one.clipped for one in alone] == [1] + [0] * (len(found) - 1)
    assert [one.degenerate for one in alone] == [2] + [0] * (len(found) - 1)
    assert found.y[0, 1].tolist() == [70, 50, 80, 60, 1]
    assert found.y[0, 2].tolist() == pytest.approx([0, 0, 19.6, 20, 1])
    assert (found.y[0, :, 4] != -1).sum() == 3
    assert found.truth[0][1, :4].tolist() == [70, 50, 100, 80]  # judged as annotated


def test_selecting_takes_everything_along(root: Path) -> None:
    found = load_coco(root, "train", 64)
    chosen = found.select(torch.tensor([4, 1]))
    assert isinstance(chosen, Scenes)
    assert torch.equal(chosen.y, found.y[[4, 1]])
    assert torch.equal(chosen.truth[0], found.truth[4])
    assert chosen.paths == (found.paths[4], found.paths[1])
    assert chosen.sizes.tolist() == found.sizes[[4, 1]].tolist()
    assert np.array_equal(chosen.original(0), found.original(4))
    assert chosen.original(0).shape == (60, 80, 3)
    assert chosen.fingerprint != found.fingerprint


# --- trees that are not as they should be


def damage(root: Path, numbers: range) -> None:
    for number in numbers:
        path = root / "train2017" / f"{number:012}.png"
        path.write_bytes(path.read_bytes()[:-400])


def test_a_damaged_image_is_left_out_with_its_boxes(root: Path) -> None:
    before = load_coco(root, "train", 64)
    damage(root, range(3, 4))
    after = load_coco(root, "train", 64)
    assert after.skipped == ("train2017/000000000003.png",)
    kept = [i for i in range(12) if i != 2]
    assert torch.equal(after.x, before.x[kept])
    assert torch.equal(after.y[:, : before.y.shape[1]], before.y[kept])
    assert len(after.truth) == 11


def test_many_damaged_images_are_an_error(root: Path) -> None:
    damage(root, range(3, 5))
    with pytest.raises(ValueError, match=r"2 of 12 files in .*train2017 cannot be read"):
        load_coco(root, "train", 64)


def turn(root: Path) -> None:
    path = root / "train2017" / "000000000001.png"
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path)


BAD = {
    "no split": (
        lambda root: shutil.rmtree(root / "train2017"),
        r"no train split; needed are annotations/instances_train2017\.json and the images in tr",
    ),
    "no annotations": (lambda root: shutil.rmtree(root / "annotations"), "has no train split"),
    "no json": (lambda root: write_json(root, "train", "{"), "is no COCO annotation file"),
    "no boxes at all": (
        lambda root: changed(root, lambda known: known.pop("annotations")),
        "is no COCO annotation file with .*KeyError",
    ),
    "no images": (lambda root: changed(root, lambda k: k.update(images=[])), "lists no images"),
    "no categories": (
        lambda root: changed(root, lambda known: known.update(categories=[])),
        "lists no categories",
    ),
    "a file that is not there": (
        lambda root: (root / "train2017" / "000000000005.png").unlink(),
        r"lacks 1 of the 12 images .* such as 000000000005\.png",
    ),
    "a box of no image": (
        lambda root: changed(root, lambda known: known["annotations"][0].update(image_id=99)),
        "annotation 1 is of image 99, which the file does not list",
    ),
    "an unknown category": (
        lambda root: changed(root, lambda known: known["annotations"][0].update(category_id=1)),
        "annotation 1 is of category 1; the file has 3, 7",
    ),
    "an image without its size": (
        lambda root: changed(root, lambda known: known["images"][2].pop("height")),
        "number 2 of its images has no height; each needs id, file_name, height, width",
    ),
    "a box of three numbers": (
        lambda root: changed(root, lambda known: known["annotations"][1].update(bbox=[1, 2, 3])),
        r"number 1 of its annotations has no bbox of four numbers, but \[1, 2, 3\]",
    ),
    "another size than annotated": (turn, r"000000000001\.png, which is 60x80: they were resized"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_named(root: Path, kind: str) -> None:
    spoil, message = BAD[kind]
    spoil(root)
    with pytest.raises(ValueError, match=message):
        load_coco(root, "train", 64)


def test_what_an_annotation_need_not_say_stands_for_nothing(root: Path) -> None:
    before = load_coco(root, "train", 64).truth
    changed(
        root,
        lambda known: [
            a.update(iscrowd=None) for a in known["annotations"] if not a.get("iscrowd")
        ],
    )
    after = load_coco(root, "train", 64).truth
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_without_a_test_split_the_way_out_is_named(tmp_path: Path) -> None:
    small(tmp_path, ["train"])
    with pytest.raises(ValueError, match=r"has no test split.*val2017/; .*data\.test_split=train"):
        load_coco(tmp_path, "test", 64)


def test_the_side_of_the_squares_must_be_given(root: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.image_size: detection needs"):
        load_coco(root, "train", None)


def test_more_pixels_than_memory_say_which_size_fits(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(scenes_module.os, "sysconf", memory.__getitem__)
    with pytest.raises(ValueError, match=r"12 images of 640 pixels need .*data\.image_size=89 or"):
        load_coco(root, "train", 640)
    assert 3 * 12 * 89**2 <= 0.7 * 100 * 4096 < 3 * 12 * 90**2
    assert len(load_coco(root, "train", 89)) == 12


# --- shapes


def test_shapes_lie_where_their_boxes_say() -> None:
    found = shapes("train")
    assert found.x.shape == (64, 3, 64, 64)
    assert set(found.y[..., 4].flatten().tolist()) == {-1, 0, 1, 2}
    last = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
    for image, rows in zip(found.x[:10], found.y[:10], strict=True):
        *_, box = (row for row in rows if row[4] != -1)  # the last one drawn hides the others
        left, top, right, bottom, label = box.int().tolist()
        colour = torch.tensor(list(last.values())[label]).view(3, 1, 1)
        assert (image[:, top:bottom, left:right] == colour).all()
    assert not torch.equal(found.x[:32], shapes("test").x)
    assert torch.equal(found.x, shapes("train").x)
