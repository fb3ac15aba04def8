"""A small residual network for CIFAR-size images, shaped as in speed-runs for clean accuracy."""

import torch.nn.functional as F
from torch import Tensor, nn

POOLS: dict[str, tuple[type[nn.Module], float]] = {
    "max": (nn.AdaptiveMaxPool2d, 0.125),
    "average": (nn.AdaptiveAvgPool2d, 0.5),
}
"""What goes on to the linear layer, and the scale of its logits: Page 2018 tuned an eighth for the
largest activations and short runs; means are smaller."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class ResNet9(nn.Module):
    """Page 2018's ("How to train your ResNet") residual network, behind a stem of 2x2 patches.

    [B, channels, H, W] -> logits [B, classes]. The stem (24 channels, no padding, so that 32
    pixels become 31 and halve to 15, 7 and 3) is that of Jordan 2024 ("94 % on CIFAR-10 in 3.29
    seconds"), but learned. Three stages of width, 2 and 4 width channels each begin with a
    convolution and a pool; the first and the last have a residual pair besides. The largest
    activation over all places, or the mean, goes to the linear layer.

    activation: behind each norm, a key of `ACTIVATIONS`. A smooth one, silu, makes adversarial
    training find more robust weights (Xie 2020, "Smooth adversarial training"), for a tenth more
    of a CPU's step.  pool: a key of `POOLS`; a mean cannot be moved by a single place.

    Differs from Page: the stem; average instead of maximum pools between the stages, whose
    backward takes a tenth less of a CPU's step; his activation is a ReLU, his pool "max".

    mirrored: in eval mode the logits are the mean of the image's and its mirror image's, as
    speed-runs answer for clean accuracy (Jordan 2024, test-time augmentation). It is part of the
    network, so that attacks climb through both halves; training takes the image alone, and an
    answer costs twice.

    Raises ValueError for an activation or a pool that is not known.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        width: int = 64,
        activation: str = "relu",
        pool: str = "max",
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}")
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is none of {', '.join(POOLS)}")
        activate = ACTIVATIONS[activation]
        last, self.scale = POOLS[pool]
        self.mirrored = mirrored
        self.stem = nn.Conv2d(channels, 24, 2)
        stages: list[nn.Module] = []
        before = 24
        for stage, residual in enumerate((True, False, True)):
            out = width * 2**stage
            stages += [nn.Conv2d(before, out, 3, padding=1, bias=False), nn.AvgPool2d(2)]
            stages += [nn.BatchNorm2d(out), activate()]
            if residual:
                stages += [_Residual(out, activate())]
            before = out
        self.stages = nn.Sequential(*stages)
        self.pool = last(1)
        self.linear = nn.Linear(before, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.mirrored and not self.training:
            return (self._logits(x) + self._logits(x.flip(3))) / 2
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.stages(F.gelu(self.stem(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return self.scale * logits


class _Residual(nn.Module):
    def __init__(self, channels: int, activate: nn.Module) -> None:
        super().__init__()
        self.activate = activate
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.activate(self.norm1(self.conv1(x)))
        activated: Tensor = self.activate(self.norm2(self.conv2(residual)))
        return x + activated
