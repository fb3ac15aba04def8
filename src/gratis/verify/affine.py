"""Affine maps in float64, as bounds need them: forwards, by absolute values, and transposed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, ...]


class Affine(Protocol):
    """a [N, *inputs] -> W a + b, [N, *outputs]."""

    @property
    def outputs(self) -> Shape: ...

    def apply(self, a: Tensor) -> Tensor: ...

    def spread(self, radius: Tensor) -> Tensor:
        """|W| radius."""
        ...

    def transpose(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients A [N, *outputs] of the outputs -> those of the inputs, and A b [N]."""
        ...


@dataclass(frozen=True)
class Dense:
    """weight [outputs, inputs], bias [outputs]."""

    weight: Tensor
    bias: Tensor

    @property
    def outputs(self) -> Shape:
        return (len(self.weight),)

    def apply(self, a: Tensor) -> Tensor:
        return F.linear(a, self.weight, self.bias)

    def spread(self, radius: Tensor) -> Tensor:
        return F.linear(radius, self.weight.abs())

    def transpose(self, A: Tensor) -> tuple[Tensor, Tensor]:
        return A @ self.weight, A @ self.bias


@dataclass(frozen=True)
class Convolution:
    """weight [out, in / groups, h, w], bias [out]; zero padding."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    inputs: Shape
    outputs: Shape

    def apply(self, a: Tensor) -> Tensor:
        return self._convolve(a, self.weight, self.bias)

    def spread(self, radius: Tensor) -> Tensor:
        return self._convolve(radius, self.weight.abs(), None)

    def _convolve(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(a, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def transpose(self, A: Tensor) -> tuple[Tensor, Tensor]:
        kernel = self.weight.shape[2:]
        # pixels at the right and lower edge that no window reaches
        left = [
            size + 2 * pad - gap * (width - 1) - 1 - step * (out - 1)
            for size, out, pad, gap, width, step in zip(
                self.inputs[1:], self.outputs[1:], self.padding, self.dilation, kernel,
                self.stride, strict=True,
            )
        ]  # fmt: skip
        back = F.conv_transpose2d(
            A,
            self.weight,
            stride=self.stride,
            padding=self.padding,
            output_padding=(left[0], left[1]),
            groups=self.groups,
            dilation=self.dilation,
        )
        return back, A.sum((2, 3)) @ self.bias


@dataclass(frozen=True)
class Scaling:
    """scale * a + shift, both of a's shape or broadcast to it."""

    scale: Tensor
    shift: Tensor
    outputs: Shape

    def apply(self, a: Tensor) -> Tensor:
        return a * self.scale + self.shift

    def spread(self, radius: Tensor) -> Tensor:
        return radius * self.scale.abs()

    def transpose(self, A: Tensor) -> tuple[Tensor, Tensor]:
        return A * self.scale, (A * self.shift).flatten(1).sum(1)


@dataclass(frozen=True)
class Flattening:
    """[N, *inputs] -> [N, product of inputs]."""

    inputs: Shape

    @property
    def outputs(self) -> Shape:
        return (prod(self.inputs),)

    def apply(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), -1)

    def spread(self, radius: Tensor) -> Tensor:
        return self.apply(radius)

    def transpose(self, A: Tensor) -> tuple[Tensor, Tensor]:
        return A.reshape(len(A), *self.inputs), A.new_zeros(len(A))


@dataclass(frozen=True)
class Stage:
    """Affine maps in sequence: all that lies between two ReLUs."""

    maps: tuple[Affine, ...]
    inputs: Shape
    outputs: Shape

    def apply(self, a: Tensor) -> Tensor:
        for step in self.maps:
            a = step.apply(a)
        return a

    def spread(self, radius: Tensor) -> Tensor:
        for step in self.maps:
            radius = step.spread(radius)
        return radius

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs' smallest and largest value for inputs in [low, high], [N, *outputs] each.

        Exact for a single map; sound for several (interval bounds, Gowal 2018).
        """
        centre, radius = self.apply((low + high) / 2), self.spread((high - low) / 2)
        return centre - radius, centre + radius

    def transpose(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Rows A [B, S, *outputs] -> rows [B, S, *inputs] and constants [B, S]."""
        lead = A.shape[:2]
        rows = A.flatten(0, 1)
        constant = rows.new_zeros(len(rows))
        for step in reversed(self.maps):
            rows, added = step.transpose(rows)
            constant = constant + added
        return rows.view(*lead, *rows.shape[1:]), constant.view(lead)


@dataclass(frozen=True)
class Piecewise:
    """A piecewise-linear network: stages with a ReLU between each two, in float64.

    sha256: of the layers' kinds, shapes and numbers, 64 hex digits.
    """

    stages: tuple[Stage, ...]
    sha256: str

    @property
    def classes(self) -> int:
        return prod(self.stages[-1].outputs)

    @property
    def relus(self) -> int:
        return sum(prod(stage.outputs) for stage in self.stages[:-1])

    def magnitude(self, like: Tensor, pixel: float) -> float:
        """The largest sum of absolute terms in a logit, for pixels of at most `pixel`.

        like: any image [1, C, H, W].
        No bound of margins passes through larger numbers, so the rounding of all of them together
        is a small multiple of 1e-16 times this and the number of terms.
        """
        return self.magnitudes(like, pixel)[-1]

    def magnitudes(self, like: Tensor, pixel: float) -> list[float]:
        """As `magnitude`, of each stage's outputs: pre-activations, and last the logits."""
        size, found = torch.full_like(like, pixel).double(), []
        for stage in self.stages:
            for step in stage.maps:
                size = step.spread(size) + step.apply(torch.zeros_like(size)).abs()
            found.append(float(size.max()))
        return found

    def logits(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, K], float64."""
        a = x.double()
        for stage in self.stages[:-1]:
            a = stage.apply(a).clamp_min(0)
        return self.stages[-1].apply(a)


def grid(values: Sequence[int] | int) -> tuple[int, int]:
    """torch's "one number or two" as two."""
    if isinstance(values, int):
        return values, values
    first, second = values
    return first, second
