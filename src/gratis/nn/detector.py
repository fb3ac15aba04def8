"""RetinaNet as this package trains it: pixels in, raw answers at every anchor out."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gratis.boxes import Answers

HeadNorm = Literal["none", "group"]

CLASSES = "head.classification_head.cls_logits"
"""The layer of a Detector that says which class, for each class at each anchor of a place."""


class Detector(nn.Module):
    """The parts of torchvision's RetinaNet, which `retina` puts together again.

    Its forward is that of any network here, so that a loss of its answers has a gradient at the
    pixels: [B, 3, S, S] -> gratis.boxes.Answers. Parameters have torchvision's names.
    """

    def __init__(self, retina: Any, classes: int) -> None:
        super().__init__()
        self.backbone, self.head = retina.backbone, retina.head
        self.anchor_generator = retina.anchor_generator
        self.classes = classes

    def forward(self, x: Tensor) -> Answers:
        """x [B, 3, S, S] -> logits and offsets at every anchor."""
        from torchvision.models.detection.image_list import ImageList

        features = list(self.backbone(x).values())
        found = self.head(features)
        # anchors are the same for all images, and in the precision of pixels: bf16 has none to
        # tell pixels of a large image apart
        shapes = [x.new_empty(()).expand(of.shape) for of in features]
        (anchors,) = self.anchor_generator(ImageList(x[:1], [tuple(x.shape[2:])]), shapes)
        each = self.anchor_generator.num_anchors_per_location()
        levels = tuple(
            of.shape[2] * of.shape[3] * count for of, count in zip(features, each, strict=True)
        )
        return Answers(found["cls_logits"], found["bbox_regression"], anchors, levels)

    def retina(self) -> Any:
        """Torchvision's RetinaNet around the very same parts."""
        from torchvision.models.detection import RetinaNet

        return RetinaNet(
            self.backbone,
            self.classes,
            anchor_generator=self.anchor_generator,
            head=self.head,
        )

    def found(self, answers: Answers, shapes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The boxes picked from `answers`: boxes [n, 4], scores [n] and labels [n] of each image.

        shapes: (height, width) that each image has inside of the network's square input; boxes
        are cut to it. By torchvision: scores above 0.05, the best 1000 of a level, then
        suppression above an IoU of 0.5 within a class, at most 300 an image.
        """
        levels = list(answers.levels)
        found: list[dict[str, Tensor]] = self.retina().postprocess_detections(
            {
                "cls_logits": list(torch.split_with_sizes(answers.classes, levels, 1)),
                "bbox_regression": list(torch.split_with_sizes(answers.offsets, levels, 1)),
            },
            [list(torch.split_with_sizes(answers.anchors, levels))] * len(shapes),
            shapes,
        )
        return found


def retinanet(
    backbone: str,
    classes: int,
    channels: int,
    width: int = 256,
    smallest_anchor: int = 32,
    head_norm: HeadNorm = "none",
) -> Detector:
    """RetinaNet on a ResNet with batch norms that learn, random weights.

    backbone: torchvision's resnet18, resnet50 and so on.  width: channels of the pyramid and the
    head.  smallest_anchor: side in pixels of the square anchor on the finest level, whose cells
    are 8 pixels wide; each further level doubles it.  head_norm: "group" as in torchvision's
    second version, which trains from random weights more readily.

    Raises ValueError for images that are not of 3 channels, or sizes that make no network.
    Source: Lin 2017, section 4; the first version of torchvision's retinanet_resnet50_fpn, whose
    P6 comes from P5. Differs from both: batch norms of the backbone are not frozen (Mei 2022,
    section 4.3).
    """
    from torchvision.models import get_model
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    if channels != 3:
        raise ValueError(f"a RetinaNet takes images of 3 channels, these have {channels}")
    if smallest_anchor < 1 or width < 1 or (head_norm == "group" and width % GROUPS):
        raise ValueError(
            f"width={width}, smallest_anchor={smallest_anchor}; give positive numbers, and with "
            f"head_norm=group a width that {GROUPS} divides"
        )
    if head_norm not in ("none", "group"):
        raise ValueError(f"head_norm={head_norm!r} is neither none nor group")
    body = get_model(backbone, weights=None)
    finest = body.inplanes // 4  # channels of the first of the three levels that are taken
    pyramid = BackboneWithFPN(
        body,
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        [finest, 2 * finest, 4 * finest],
        width,
        extra_blocks=LastLevelP6P7(width, width),
    )
    sides = [smallest_anchor * 2**level for level in range(5)]
    anchors = AnchorGenerator(
        tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in sides),
        ((0.5, 1.0, 2.0),) * len(sides),
    )
    norm = partial(nn.GroupNorm, GROUPS) if head_norm == "group" else None
    head = RetinaNetHead(width, anchors.num_anchors_per_location()[0], classes, norm_layer=norm)
    return Detector(RetinaNet(pyramid, classes, anchor_generator=anchors, head=head), classes)


GROUPS = 32
"""Of a group norm in the head, as in torchvision's second version."""
