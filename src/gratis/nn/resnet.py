"""The residual networks of the CIFAR experiments: Fast's PreActResNet-18 and Free's WRN-32-10."""

import torch.nn.functional as F
from torch import Tensor, nn

from gratis.nn.normalize import PerImageStandardize


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 (He et al. 2016) in the version of Fast (Wong et al. 2020).

    [B, channels, H, W] -> logits [B, classes]. Four stages of two blocks with width, 2, 4 and
    8 width channels; all but the first halve the image. A block that changes shape projects its
    raw input (other versions in circulation project the activated one), and a last
    BatchNorm + ReLU stands before the pooling (others have none).

    Differs from the paper: the pooling is adaptive, so that any image size works; at 32x32 it is
    the same 4x4 average.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        blocks = []
        before = width
        for stage in range(4):
            out = width * 2**stage
            blocks += [_PreActBlock(before, out, stride=1 if stage == 0 else 2)]
            blocks += [_PreActBlock(out, out, stride=1)]
            before = out
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(before)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.conv(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class _PreActBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(F.relu(self.norm1(x)))
        residual = self.conv2(F.relu(self.norm2(residual)))
        total: Tensor = residual + self.shortcut(x)
        return total


class WideResNet32x10(nn.Module):
    """The "WRN 32-10" of Free (Shafahi et al. 2019), which is Madry et al.'s w32-10.

    [B, channels, H, W], pixels in [0, 1] -> logits [B, classes]. It standardises every image
    itself, so build it without mean and std. Three stages of five units with width, 2 width and
    4 width channels (160, 320, 640); leaky ReLU of slope 0.1; a shortcut that changes shape is
    an average pool and zeros for the new channels, so it has no weights. BatchNorm forgets with
    decay 0.9 (torch momentum 0.1) and adds 1e-3 to the variance; weights start as in the
    authors' code.

    Differs from the paper: the authors' strided convolutions pad below and to the right alone
    (TensorFlow's "SAME" on even sizes), these pad all around.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 160) -> None:
        super().__init__()
        if width < 16:
            raise ValueError(
                f"width is {width}; the first layer has 16 channels and a shortcut can only add "
                "some: give 16 or more"
            )
        self.standardize = PerImageStandardize()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        units = []
        before = 16
        for stage in range(3):
            out = width * 2**stage
            units += [_WideUnit(before, out, 1 if stage == 0 else 2, activate_first=stage == 0)]
            units += [_WideUnit(out, out, 1) for _ in range(4)]
            before = out
        self.units = nn.Sequential(*units)
        self.norm = _norm(before)
        self.linear = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        bound = (3 / before) ** 0.5
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = _act(self.norm(self.units(self.conv(self.standardize(x)))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class _WideUnit(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, activate_first: bool = False) -> None:
        super().__init__()
        self.activate_first = activate_first  # the very first unit's shortcut is activated as well
        self.stride = stride
        self.added = out - channels
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2 = _norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = _act(self.norm1(x))
        shortcut = activated if self.activate_first else x
        if self.stride > 1:
            # ceil_mode: at odd sizes the strided convolution rounds up.
            shortcut = F.avg_pool2d(shortcut, self.stride, ceil_mode=True)
        if self.added:
            before = self.added // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.added - before))
        residual = self.conv2(_act(self.norm2(self.conv1(activated))))
        total: Tensor = residual + shortcut
        return total


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)
