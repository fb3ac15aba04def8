"""Mean average precision of a detector, as COCO counts it, in pixels of the original images."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from gratis.data.scenes import Scenes
from gratis.evaluate.mode import as_evaluated
from gratis.nn.detector import Detector
from gratis.nn.freezing import behind_normalize

PACKAGE = "faster-coco-eval"
AREAS = ("small", "medium", "large")
"""COCO's size classes: areas below 32 x 32 pixels of the original, below 96 x 96, and the rest."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Precision:
    """Mean average precisions, shares of 1; None where no image has a box of that size.

    overall: over IoU thresholds 0.50 to 0.95.  at_50, at_75: at one of them.  areas: of AREAS.
    """

    overall: float | None
    at_50: float | None
    at_75: float | None
    areas: dict[str, float | None]
    images: int
    seconds: float


def average_precision(
    model: nn.Module,
    scenes: Scenes,
    batch_size: int,
    *,
    pixels: Callable[[slice], Tensor] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Precision:
    """COCO's average precision of `model`, in eval mode and fp32, over all images of `scenes`.

    pixels: x [n, 3, S, S] of a slice of the images, where those as they are shall not be taken;
    boxes are judged against the same truth.  progress: called with how many images are done.
    Crowds, and the limit of 100 boxes of a class in an image, count as in COCO's own code.

    Raises ValueError for a network that is no detector, or where the extra is not installed.
    """
    judge()  # before any image
    began = time.perf_counter()
    net = behind_normalize(model)
    if not isinstance(net, Detector):
        raise ValueError(f"{type(net).__name__} is no detector: it does not answer with boxes")
    found: list[Row] = []
    weight = next(model.parameters(), None)
    device = scenes.x.device if weight is None else weight.device
    with as_evaluated(model), torch.no_grad():
        for start in range(0, len(scenes), batch_size):
            chosen = slice(start, min(start + batch_size, len(scenes)))
            x = scenes.pixels(chosen) if pixels is None else pixels(chosen)
            places = range(chosen.start, chosen.stop)
            shapes = [scenes.fitted(place) for place in places]
            answers = model(x.to(device))
            for place, boxes in zip(places, net.found(answers, shapes), strict=True):
                found += _rows(boxes, place, scenes)
            progress(chosen.stop)
    figures = _counted(scenes, found)
    return Precision(
        figures["AP_all"],
        figures["AP_50"],
        figures["AP_75"],
        {area: figures[f"AP_{area}"] for area in AREAS},
        len(scenes),
        time.perf_counter() - began,
    )


def judge() -> str:
    """What counts, with its version; ValueError says how to get it where it is not there."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError as error:
        raise ValueError(
            f"mean average precision is counted by {PACKAGE}, which is not installed: "
            "pip install 'gratis[detection]'"
        ) from error


def _rows(found: dict[str, Tensor], place: int, scenes: Scenes) -> list[Row]:
    """What was found in one image, from pixels of its square to pixels of the original."""
    (height, width), (inner_height, inner_width) = (
        scenes.sizes[place].tolist(),
        scenes.fitted(place),
    )
    scale = torch.tensor([width / inner_width, height / inner_height] * 2, dtype=torch.float64)
    corners = found["boxes"].double().cpu() * scale
    return [
        {"image_id": place + 1, "category_id": label + 1, "bbox": _bbox(box), "score": score}
        for box, score, label in zip(
            corners.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        )
    ]


def _bbox(box: list[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def _counted(scenes: Scenes, found: list[Row]) -> dict[str, float | None]:
    """COCO's figures by its names; images and categories are counted from 1."""
    from faster_coco_eval import COCO, COCOeval_faster

    boxes = [(place, row) for place, rows in enumerate(scenes.truth, 1) for row in rows.tolist()]
    truth = COCO(
        {
            "images": [
                {"id": place, "height": height, "width": width}
                for place, (height, width) in enumerate(scenes.sizes.tolist(), 1)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": place,
                    "category_id": int(label) + 1,
                    "bbox": _bbox(corners),
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (place, (*corners, label, area, crowd)) in enumerate(boxes, 1)
            ],
            "categories": [
                {"id": number, "name": name} for number, name in enumerate(scenes.classes, 1)
            ],
        }
    )
    judging = COCOeval_faster(truth, truth.loadRes(found), iouType="bbox")
    judging.evaluate()
    judging.accumulate()
    judging.summarize()
    figures: dict[str, float] = judging.stats_as_dict
    # -1 is what it says where there is no box to be found
    return {name: None if value < 0 else float(value) for name, value in figures.items()}
