"""A detector that takes milliseconds: RetinaNet on three small convolutions."""

from collections import OrderedDict

from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from gratis.nn import Detector


def build(classes, channels, image_size, width=8):
    def layer(inputs, outputs, stride):
        conv = nn.Conv2d(inputs, outputs, stride + 1, stride, padding=stride // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    body = nn.Sequential(
        OrderedDict(layer2=layer(channels, 8, 8), layer3=layer(8, 16, 2), layer4=layer(16, 32, 2))
    )
    levels = {f"layer{level}": str(level - 2) for level in (2, 3, 4)}
    extra = LastLevelP6P7(width, width)
    pyramid = BackboneWithFPN(body, levels, [8, 16, 32], width, extra_blocks=extra)
    anchors = AnchorGenerator(tuple((16 * 2**n,) for n in range(5)), ((0.5, 1.0, 2.0),) * 5)
    head = RetinaNetHead(width, 3, classes)
    return Detector(RetinaNet(pyramid, classes, anchor_generator=anchors, head=head), classes)
