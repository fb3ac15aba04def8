"""Mean average precision: perfect answers, a flat computation, COCO's rules."""

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gratis.data.detection import load_coco
from gratis.data.scenes import Scenes
from gratis.evaluate.detection import Precision, average_precision
from gratis.nn import Detector
from tests.coco_trees import small, write_split

Found = list[tuple[list[float], float, int]]
"""Of one image: box in pixels of the original, score and class."""


class Oracle(Detector):
    """A detector that says what it is told, image after image."""

    def __init__(self, scenes: Scenes, said: list[Found]) -> None:
        nn.Module.__init__(self)
        self.scenes, self.said, self.place = scenes, said, 0

    def forward(self, x: Tensor) -> int:  # type: ignore[override]
        assert not self.training
        return len(x)

    def found(self, answers: int, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:  # type: ignore[override]
        found = []
        for place in range(self.place, self.place + answers):
            height, width = self.scenes.sizes[place].tolist()
            inner = self.scenes.fitted(place)
            assert shapes[place - self.place] == inner
            scale = torch.tensor([inner[1] / width, inner[0] / height] * 2)
            said = self.said[place]
            found.append(
                {
                    "boxes": torch.tensor([box for box, *_ in said]).view(-1, 4) * scale,
                    "scores": torch.tensor([score for _, score, _ in said]),
                    "labels": torch.tensor([label for *_, label in said], dtype=torch.int64),
                }
            )
        self.place += answers
        return found


def judged(scenes: Scenes, said: list[Found], batch_size: int = 5) -> Precision:
    return average_precision(Oracle(scenes, said), scenes, batch_size)


def scene(tmp_path: Path, boxes: dict[int, list[list[float]]], **more: object) -> Scenes:
    """Images of 400 x 300 pixels, all boxes cats, shown at 200 pixels."""
    write_split(
        tmp_path,
        "train",
        [(number, 400, 300) for number in boxes],
        [
            {"image_id": number, "category_id": 3, "bbox": box, **more}
            for number, of_image in boxes.items()
            for box in of_image
        ],
    )
    return load_coco(tmp_path, "train", 200)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_perfect_answers_have_precision_one(tmp_path: Path, batch_size: int) -> None:
    scenes = load_coco(small(tmp_path), "train", 128)
    said: list[Found] = [
        [(row[:4].tolist(), 1.0, int(row[4])) for row in rows if not row[6]]
        for rows in scenes.truth
    ]
    found = judged(scenes, said, batch_size)
    assert (found.overall, found.at_50, found.at_75) == (1, 1, 1)
    assert found.areas == {"small": 1, "medium": None, "large": None}
    assert found.images == 12


def test_no_answer_has_precision_zero(tmp_path: Path) -> None:
    scenes = load_coco(small(tmp_path), "train", 128)
    found = judged(scenes, [[] for _ in range(12)])
    assert (found.overall, found.at_50, found.at_75) == (0, 0, 0)


def flat_average_precision(right: list[bool], boxes: int) -> float:
    """COCO's: the mean over 101 recalls of the best precision at that recall or beyond it.

    right: whether each answer hit a box of its own, the surest answer first.
    """
    points, hits = [], 0
    for place, hit in enumerate(right, 1):
        hits += hit
        points.append((hits / boxes, hits / place))
    recalls = [step / 100 for step in range(101)]
    return sum(max((p for r, p in points if r >= at), default=0.0) for at in recalls) / 101


def test_a_simple_case_counted_flat(tmp_path: Path) -> None:
    scenes = scene(tmp_path, {1: [[0, 0, 100, 100]], 2: [[50, 50, 100, 100], [200, 100, 90, 90]]})
    box, near, none = [0.0, 0, 100, 100], [50.0, 50, 150, 132], [300.0, 200, 390, 290]
    said: list[Found] = [
        [(box, 0.9, 0), (none, 0.8, 0)],
        [(near, 0.7, 0), (none, 0.6, 0), ([200.0, 100, 290, 190], 0.5, 0)],
    ]
    found = judged(scenes, said)
    hits = [True, False, True, False, True]
    assert found.at_50 == pytest.approx(flat_average_precision(hits, 3))
    # `near` covers 82 of 100 rows: right up to an IoU of 0.80, wrong above it
    strict = flat_average_precision([True, False, False, False, True], 3)
    lenient = flat_average_precision(hits, 3)
    assert found.at_75 == pytest.approx(lenient)
    assert found.overall == pytest.approx((7 * lenient + 3 * strict) / 10)


def test_boxes_on_an_image_that_has_none_count_against(tmp_path: Path) -> None:
    scenes = scene(tmp_path, {1: [[0, 0, 100, 100]], 2: []})
    right: Found = [([0.0, 0, 100, 100], 0.5, 0)]
    assert judged(scenes, [right, []]).overall == 1
    wrong: Found = [([0.0, 0, 100, 100], 0.9, 0)]
    assert judged(scenes, [right, wrong]).overall == pytest.approx(0.5)


def test_what_lies_in_a_crowd_counts_neither_way(tmp_path: Path) -> None:
    crowd = {"image_id": 1, "category_id": 3, "bbox": [200, 100, 200, 200], "iscrowd": 1}
    one = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 100, 100]}
    right, inside = ([0.0, 0, 100, 100], 0.5, 0), ([220.0, 120, 260, 160], 0.9, 0)
    write_split(tmp_path, "train", [(1, 400, 300)], [one, crowd])
    assert judged(load_coco(tmp_path, "train", 200), [[inside, right]]).overall == 1
    write_split(tmp_path, "train", [(1, 400, 300)], [one])
    assert judged(load_coco(tmp_path, "train", 200), [[inside, right]]).overall == pytest.approx(
        0.5
    )


def test_size_classes_go_by_the_annotated_area_in_the_original(tmp_path: Path) -> None:
    scenes = scene(tmp_path, {1: [[0, 0, 100, 100]]}, area=1000)
    found = judged(scenes, [[([0.0, 0, 100, 100], 0.5, 0)]])
    assert found.areas == {"small": 1, "medium": None, "large": None}


def test_the_network_keeps_its_mode_and_other_pixels_may_be_shown(tmp_path: Path) -> None:
    scenes = scene(tmp_path, {1: [[0, 0, 100, 100]], 2: [], 3: []})
    oracle, seen = Oracle(scenes, [[], [], []]).train(), []

    def black(chosen: slice) -> Tensor:
        seen.append((chosen.start, chosen.stop))
        return torch.zeros(chosen.stop - chosen.start, 3, 200, 200)

    average_precision(oracle, scenes, 2, pixels=black)
    assert seen == [(0, 2), (2, 3)]
    assert oracle.training


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Flatten is no detector"):
        average_precision(nn.Flatten(), scene(tmp_path, {1: []}), 1)


def test_without_the_extra_the_install_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("gratis.evaluate.detection.version", none)
    with pytest.raises(ValueError, match=r"pip install 'gratis\[detection\]'"):
        average_precision(nn.Flatten(), scene(tmp_path, {1: []}), 1)


@pytest.mark.data
def test_the_annotations_of_coco_are_their_own_perfect_answer() -> None:
    root = Path(os.environ.get("GRATIS_DATA", ""), "coco128")
    if "GRATIS_DATA" not in os.environ or not root.is_dir():
        pytest.skip("$GRATIS_DATA/coco128 is not there")
    scenes = load_coco(root, "train", 160)
    assert len(scenes.classes) == 80
    assert (len(scenes), sum(map(len, scenes.truth))) == (128, 939)
    assert sum(int(boxes[:, 6].sum()) for boxes in scenes.truth) == 10
    assert sum(not len(boxes) for boxes in scenes.truth) == 2
    boxes = scenes.y[scenes.y[..., 4] != -1]
    assert len(boxes) == 929
    assert ((boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:4]) & (boxes[:, 2:4] <= 160)).all()
    said: list[Found] = [
        [(row[:4].tolist(), 1.0, int(row[4])) for row in rows if not row[6]]
        for rows in scenes.truth
    ]
    found = judged(scenes, said, 32)
    assert found.overall == pytest.approx(1)
    assert all(share == pytest.approx(1) for share in found.areas.values())
