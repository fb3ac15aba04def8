"""From an nn.Module to stages of affine maps and ReLUs, or a sentence why not."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gratis.nn import Normalize
from gratis.nn.auxbn import BranchedNorm
from gratis.verify.affine import (
    Affine,
    Convolution,
    Dense,
    Flattening,
    Piecewise,
    Scaling,
    Shape,
    Stage,
    grid,
)

SUPPORTED = "Normalize, Conv2d, Linear, ReLU, Flatten, AvgPool2d, BatchNorm in eval mode"
MOST_RELUS = 20_000


def lowered(model: nn.Module, shape: Shape) -> Piecewise:
    """The function that `model` computes in eval mode on images of `shape` (C, H, W).

    Weights keep their values; batch norms become a scale and a shift; everything is float64, on
    the model's device. ValueError names the first layer that is not piecewise linear or not
    known here, one whose numbers are not finite, and a network of more than 20,000 ReLUs.
    """
    stages: list[Stage] = []
    maps: list[Affine] = []
    entry = inner = shape
    digest = hashlib.sha256(str(shape).encode())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for name, layer in _layers(model, ""):
        # subclasses may compute something else, here and below
        if type(layer) in (nn.Identity, nn.Dropout, nn.Dropout2d):
            continue  # nothing in eval mode
        digest.update(type(layer).__name__.encode())
        if type(layer) is nn.ReLU:
            stages.append(Stage(tuple(maps), entry, inner))
            maps, entry = [], inner
            continue
        with device:
            step = _affine(name, layer, inner)
        for key, value in sorted(vars(step).items()):
            if isinstance(value, Tensor):
                if not value.isfinite().all():
                    raise ValueError(
                        f"layer {name} ({type(layer).__name__}) holds numbers that are not "
                        "finite: nothing can be proved about this network"
                    )
                digest.update(value.cpu().contiguous().numpy().tobytes())
            digest.update(f"{key} {value if not isinstance(value, Tensor) else ''}".encode())
        maps.append(step)
        inner = step.outputs
    stages.append(Stage(tuple(maps), entry, inner))
    if len(inner) != 1:
        raise ValueError(
            f"the network ends with an output of shape {list(inner)} an image; one logit a class "
            "is needed: end with Flatten or Linear"
        )
    network = Piecewise(tuple(stages), digest.hexdigest())
    if network.relus > MOST_RELUS:
        raise ValueError(
            f"the network has {network.relus:,} ReLUs; exact verification here is for small ones, "
            f"of {MOST_RELUS:,} at most, such as mnist-net (4,804)"
        )
    return network


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for part in module.modules() if type(module) is not nn.Sequential else [module]:
        if part._forward_hooks or part._forward_pre_hooks:
            raise ValueError(
                f"layer {name or '0'} ({type(module).__name__}) has hooks, which may compute "
                "anything; remove them to have the network verified"
            )
    if type(module) is not nn.Sequential:
        yield name or "0", module
        return
    for key, child in module._modules.items():  # named_children tells a repeated one once
        assert child is not None  # of a Sequential
        yield from _layers(child, f"{name}.{key}" if name else key)


def _affine(name: str, layer: nn.Module, shape: Shape) -> Affine:
    """One layer as an affine map on inputs of `shape`."""
    if type(layer) is BranchedNorm:
        layer = layer.main_norm  # what evaluation goes through
    if type(layer) is Normalize:
        std = _double(layer.std)[0]
        return Scaling(1 / std, -_double(layer.mean)[0] / std, shape)
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return _batch_norm(name, layer, shape)
    if type(layer) is nn.Linear:
        return Dense(_double(layer.weight), _bias(layer, layer.out_features))
    if type(layer) is nn.Conv2d:
        return _convolution(name, layer, shape)
    if type(layer) is nn.Flatten:
        if layer.start_dim != 1 or layer.end_dim not in (-1, len(shape)):
            raise _refused(name, layer, "keeps some dimensions apart")
        return Flattening(shape)
    if type(layer) is nn.AvgPool2d:
        return _pooling(name, layer, shape)
    if type(layer) is nn.AdaptiveAvgPool2d:
        out = layer.output_size
        if out not in (1, (1, 1)):
            raise _refused(name, layer, "has an output of more than one pixel")
        return _mean(shape, (shape[1], shape[2]), (1, 1), (0, 0))
    raise _refused(name, layer, "is none of these")


def _refused(name: str, layer: nn.Module, why: str) -> ValueError:
    return ValueError(
        f"layer {name} ({type(layer).__name__}) {why}: exact verification is for a Sequential of "
        f"{SUPPORTED}; attack this network instead (gratis evaluate --attack autoattack)"
    )


def _batch_norm(name: str, layer: Any, shape: Shape) -> Scaling:
    if layer.running_mean is None:
        raise _refused(name, layer, "has no running statistics")
    scale = (_double(layer.running_var) + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * _double(layer.weight)
    shift = -_double(layer.running_mean) * scale
    if layer.affine:
        shift = shift + _double(layer.bias)
    sized = (-1, *[1] * (len(shape) - 1))
    return Scaling(scale.view(sized), shift.view(sized), shape)


def _convolution(name: str, layer: nn.Conv2d, shape: Shape) -> Convolution:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise _refused(name, layer, "pads otherwise than by a number of zeros")
    return _placed(
        _double(layer.weight),
        _bias(layer, layer.out_channels),
        grid(layer.stride),
        grid(layer.padding),
        grid(layer.dilation),
        layer.groups,
        shape,
    )


def _pooling(name: str, layer: nn.AvgPool2d, shape: Shape) -> Convolution:
    padding = grid(layer.padding)
    if layer.ceil_mode or layer.divisor_override or (any(padding) and not layer.count_include_pad):
        raise _refused(name, layer, "divides by other than its window's size")
    return _mean(shape, grid(layer.kernel_size), grid(layer.stride), padding)


def _mean(
    shape: Shape, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Convolution:
    weight = torch.full((shape[0], 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=torch.double)
    bias = torch.zeros(shape[0], dtype=torch.double)
    return _placed(weight, bias, stride, padding, (1, 1), shape[0], shape)


def _placed(
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    shape: Shape,
) -> Convolution:
    out = tuple(
        (size + 2 * pad - gap * (width - 1) - 1) // step + 1
        for size, pad, gap, width, step in zip(
            shape[1:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    )
    outputs = (len(weight), *out)
    return Convolution(weight, bias, stride, padding, dilation, groups, shape, outputs)


def _bias(layer: Any, size: int) -> Tensor:
    if layer.bias is None:
        return torch.zeros(size, dtype=torch.double)
    return _double(layer.bias)


def _double(values: Tensor) -> Tensor:
    return values.detach().double()
