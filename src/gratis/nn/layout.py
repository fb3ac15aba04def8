"""In which memory layout a network can be learned."""

import torch
from torch import nn

NARROW = 16


def layout(model: nn.Module, channels_last: bool) -> torch.memory_format:
    """Channels last where it is asked for, and safe on the model's device; else channels first.

    On CPUs with AVX-512 PyTorch 2.15.0 (oneDNN) writes beyond its memory where it computes the
    weight gradient of a strided 1x1 convolution of 2 to 15 input channels, channels last, for an
    odd number of images from 3 on. As shortcuts of narrow residual nets are.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    unsafe = on_cpu and any(_is_unsafe(module) for module in model.modules())
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format


def _is_unsafe(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels < NARROW
    )
