"""First layers that turn pixels in [0, 1] into what a network likes to see."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std for each channel; the first layer of a model, so that eps stays in pixels.

    Computes in fp32 or better whatever the autocast around it: in bf16 the pixels near 1 are
    1/256 apart, about the size of a perturbation.

    mean, std: a number for each of the C channels, or a single one, in the unit of the pixels.
    Raises ValueError where they differ in length or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"mean has {len(mean)} numbers and std has {len(std)}; "
                "both need one for each channel (or a single one)"
            )
        if not all(s > 0 for s in std):
            raise ValueError(f"std is {list(std)}; every number in it must be above 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [0, 1] -> [B, C, H, W], fp32 (fp64 stays)."""
        return (_at_least_fp32(x) - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class PerImageStandardize(nn.Module):
    """Every image minus its mean, over its standard deviation (the first layer of Free's WRN).

    The deviation is kept from below by that of one grey level in an image's root of size,
    1 / (255 sqrt(C H W)): the bound of the TensorFlow function that Shafahi et al. 2019 use,
    in the unit of [0, 1] pixels. Computes in fp32 or better, as `Normalize` does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [0, 1] -> [B, C, H, W], fp32 (fp64 stays)."""
        x = _at_least_fp32(x)
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
        # Bounded before the root, whose slope at 0 would make the gradient of a flat image NaN.
        return (x - mean) / variance.clamp(min=1 / (255**2 * x[0].numel())).sqrt()


def _at_least_fp32(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"the images are {x.dtype}; pixels must be floats in [0, 1]: x / 255")
    return x.to(torch.promote_types(x.dtype, torch.float32))
