"""Boxes in images: what a detector answers, what it should answer, and the loss between them.

Targets are one tensor y [B, M, 5], float32: x1, y1, x2, y2 in pixels of the network's input and
the class index; images with fewer than M boxes have rows of class NO_BOX.
"""

from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

NO_BOX = -1
"""The class of a row that holds no box."""

Climbed = Literal["sum", "class", "box"]
"""The part of the loss that an attack climbs: the sum, the classes', the boxes'."""


class Answers(NamedTuple):
    """What a detector says of B images at A anchors, before boxes are picked.

    classes: logits [B, A, K].  offsets: [B, A, 4] from the anchors, as RetinaNet codes them.
    anchors: [A, 4], x1, y1, x2, y2 in pixels, the same for all images.
    levels: how many of the anchors belong to each level of the pyramid, in order.
    """

    classes: Tensor
    offsets: Tensor
    anchors: Tensor
    levels: tuple[int, ...]


def mirrored(y: Tensor, flips: Tensor, width: int) -> Tensor:
    """Targets y [B, M, 5] of images of `width` pixels, those with flips [B] left to right."""
    left, top, right, bottom, label = y.unbind(-1)
    moved = torch.stack([width - right, top, width - left, bottom, label], -1)
    wanted = flips[:, None] & (label != NO_BOX)
    return torch.where(wanted[..., None], moved, y)


def retinanet_losses(answers: Answers, y: Tensor, part: Climbed = "sum") -> Tensor:
    """RetinaNet's loss of each image, [B], in fp32 or better: focal loss of classes plus L1 of
    boxes, each over the number of anchors that a box was given to (one at least).

    Torchvision's own, which takes the mean over a batch's images, called image by image.
    Source: Lin 2017, sections 3 and 4; the boxes' L1 is torchvision's.
    """
    head, matcher = _torchvisions()
    classes, offsets = (_wide(of) for of in (answers.classes, answers.offsets))
    losses = []
    for image, target in enumerate(targets(y)):
        found = head.compute_loss(
            [target],
            {"cls_logits": classes[image, None], "bbox_regression": offsets[image, None]},
            [answers.anchors],
            [_matched(matcher, target["boxes"], answers.anchors)],
        )
        losses.append(
            {
                "sum": found["classification"] + found["bbox_regression"],
                "class": found["classification"],
                "box": found["bbox_regression"],
            }[part]
        )
    return torch.stack(losses)


def targets(y: Tensor) -> list[dict[str, Tensor]]:
    """y [B, M, 5] as torchvision takes it: boxes [n, 4] and labels [n] of each image."""
    real = [rows[rows[:, 4] != NO_BOX] for rows in y]
    return [{"boxes": rows[:, :4], "labels": rows[:, 4].long()} for rows in real]


def _matched(matcher: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
    """For each anchor [A] which box it was given to; below 0 for none."""
    from torchvision.ops import box_iou

    if not len(boxes):
        return torch.full((len(anchors),), matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
    found: Tensor = matcher(box_iou(boxes, anchors))
    return found


@cache
def _torchvisions() -> tuple[Any, Any]:
    """RetinaNet's head, for its loss alone, which needs no weight, and what matches anchors."""
    from torchvision.models.detection._utils import Matcher
    from torchvision.models.detection.retinanet import RetinaNetHead

    with torch.device("meta"):  # no memory, and no random number is drawn
        head = RetinaNetHead(in_channels=1, num_anchors=1, num_classes=1)
    return head, Matcher(0.5, 0.4, allow_low_quality_matches=True)


def _wide(of: Tensor) -> Tensor:
    return of.to(torch.promote_types(of.dtype, torch.float32))
