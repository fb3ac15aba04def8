"""Perturbation sets ("balls"): the threat model's norm, radius and pixel box.

Everything here works on batches of shape [B, C, H, W] (any shape after B will do), in fp32
pixels between `low` and `high`. Clipping happens outside every autograd graph: a clamp
inside the attacked graph kills the gradient of saturated pixels and makes a weak attack.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ball(ABC):
    """All perturbations delta with norm(delta) <= eps and x + delta inside [low, high].

    eps: radius in pixel units, the images' own ([0, 1] unless low and high say otherwise).
    """

    eps: float
    low: float = 0.0
    high: float = 1.0

    norm: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.high > self.low:
            raise ValueError(f"low={self.low} must lie below high={self.high}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps={self.eps} is no radius; give a finite number >= 0")

    def of(self, eps: float) -> Self:
        """The same kind of ball with radius `eps` (the pixel range, where that is narrower)."""
        return replace(self, eps=eps)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless x is a floating-point batch with pixels in [low, high]."""
        if not x.is_floating_point():
            raise ValueError(
                f"images came as {x.dtype}; give floating-point pixels in [{self.low}, {self.high}]"
                " (uint8 images: x.float() / 255)"
            )
        lowest, highest = torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
        # negated so that NaN fails too
        if not (lowest >= self.low and highest <= self.high):
            raise ValueError(self._what_is_wrong(x, lowest.item(), highest.item()))

    def _what_is_wrong(self, x: Tensor, lowest: float, highest: float) -> str:
        if bad := int((~torch.isfinite(x.flatten(1)).all(1)).sum()):
            return (
                f"{bad} of {len(x)} images hold pixels that are not finite; clean or leave them out"
            )
        found = f"pixels run from {lowest:.4g} to {highest:.4g}, outside [{self.low}, {self.high}]"
        if lowest >= 0 and 2 < highest <= 255:
            return f"{found}; they look like grey levels: x / 255"
        return (
            f"{found}; move normalisation into the model (its first layer, gratis.Normalize) "
            "so that eps and the pixel range mean what they say"
        )

    def place(self, x: Tensor, delta: Tensor) -> Tensor:
        """x + delta, a new tensor exactly inside [low, high] (rounding could leave it)."""
        return self.clip(x + delta)

    def clip(self, point: Tensor) -> Tensor:
        """A new tensor with every pixel inside [low, high]."""
        return point.clamp(self.low, self.high)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """The point of the set next to delta: onto the ball, then onto the pixel box of x."""
        return self.into_box(x, self.onto_ball(delta))

    def into_box(self, x: Tensor, delta: Tensor) -> Tensor:
        """delta with x + delta clipped to [low, high]; this never lengthens delta."""
        return (x + delta).clamp_(self.low, self.high).sub_(x)

    def ascend(self, x: Tensor, delta: Tensor, grad: Tensor, step_size: float) -> Tensor:
        """project(x, delta + step_size * steepest(grad)): one step up the loss.

        Only the direction of each image's gradient counts, so a scaled loss changes nothing.
        An image whose gradient is not finite keeps its perturbation.
        """
        grad = grad.to(delta.dtype)
        finite = torch.isfinite(grad.flatten(1)).all(1).view(-1, *[1] * (grad.dim() - 1))
        stepped = self.project(x, delta + step_size * self.steepest(grad))
        return torch.where(finite, stepped, delta)

    @abstractmethod
    def onto_ball(self, delta: Tensor) -> Tensor:
        """The nearest perturbation with norm <= eps."""

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random perturbation for each image, uniform in the ball, then cut to the pixel box."""
        return self.into_box(x, self.sample_unclipped(x, generator))

    @abstractmethod
    def sample_unclipped(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random perturbation an image, uniform in the ball; x + delta may leave the box."""

    @abstractmethod
    def steepest(self, grad: Tensor) -> Tensor:
        """The unit step along which a linear loss with gradient `grad` grows most, per image."""

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """The norm of each image's perturbation, [B]."""


@dataclass(frozen=True)
class Linf(Ball):
    """|delta| <= eps in every pixel: Linf(8/255)."""

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > self.high - self.low:
            raise ValueError(
                f"eps={self.eps:g} is wider than the pixel range [{self.low}, {self.high}]; "
                f"pixels are [0, 1] here, so 8 grey levels of 255 are written eps=8/255"
            )

    def of(self, eps: float) -> Self:
        return super().of(min(eps, self.high - self.low))

    def onto_ball(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)

    def sample_unclipped(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.empty_like(x).uniform_(-self.eps, self.eps, generator=generator)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)


@dataclass(frozen=True)
class L2(Ball):
    """Euclidean length of each image's delta <= eps: L2(128/255) for CIFAR-10."""

    norm: ClassVar[str] = "l2"

    def onto_ball(self, delta: Tensor) -> Tensor:
        length = self._broadcast(self.size(delta), delta)
        return delta * (self.eps / length.clamp_min(1e-30)).clamp_max(1.0)

    def sample_unclipped(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        direction = self.steepest(torch.empty_like(x).normal_(generator=generator))
        share = x.new_empty(len(x)).uniform_(0, 1, generator=generator)
        pixels = x[0].numel() if len(x) else 1
        radius = self.eps * share.pow(1 / pixels)
        return direction * self._broadcast(radius, x)

    def steepest(self, grad: Tensor) -> Tensor:
        # scaled by the largest entry first, so that squares neither overflow nor underflow
        largest = self._broadcast(grad.flatten(1).abs().amax(1), grad)
        scaled = grad / torch.where(largest > 0, largest, 1.0)
        length = self._broadcast(torch.linalg.vector_norm(scaled.flatten(1), dim=1), grad)
        return scaled / torch.where(length > 0, length, 1.0)

    def size(self, delta: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    @staticmethod
    def _broadcast(per_image: Tensor, like: Tensor) -> Tensor:
        return per_image.view(-1, *[1] * (like.dim() - 1))


BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2}
