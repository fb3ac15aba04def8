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

ROUNDING = 1e-3
"""So little outside the pixel range, as a share of it, images were rounded and not normalised."""


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
        """Raise ValueError unless x is a batch in fp32 or better, with pixels in [low, high]."""
        if not x.is_floating_point():
            raise ValueError(
                f"images came as {x.dtype}; give floating-point pixels in [{self.low}, {self.high}]"
                " (uint8 images: x.float() / 255)"
            )
        if torch.finfo(x.dtype).bits < 32:
            raise ValueError(
                f"images are {x.dtype}, in which pixels lie too far apart to be moved by eps; give "
                "model.float() and x.float() (autocast may stand around the model)"
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
        excess = max(self.low - lowest, highest - self.high)
        if excess < ROUNDING * (self.high - self.low):
            return (
                f"pixels run from {lowest} to {highest}, a little outside [{self.low}, {self.high}]"
                f", as by rounding; put them inside: x.clamp({self.low}, {self.high})"
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
        """A point of the set near delta: onto the ball, then onto the pixel box of x."""
        return self.into_box(x, self.onto_ball(delta))

    def into_box(self, x: Tensor, delta: Tensor) -> Tensor:
        """delta with x + delta clipped to [low, high]; this never lengthens delta."""
        return (x + delta).clamp_(self.low, self.high).sub_(x)

    def movable(self, point: Tensor, grad: Tensor) -> Tensor:
        """grad, but 0 where a pixel of `point` stands at the box's edge and would be pushed out."""
        stuck = ((grad > 0) & (point >= self.high)) | ((grad < 0) & (point <= self.low))
        return grad.masked_fill(stuck & torch.isfinite(grad), 0)

    def ascend(self, x: Tensor, delta: Tensor, grad: Tensor, step_size: float) -> Tensor:
        """project(x, delta + step_size * steepest(grad)): one step up the loss.

        Only the direction of each image's gradient counts, so a scaled loss changes nothing.
        An image whose gradient is not finite keeps its perturbation.
        """
        grad = grad.to(delta.dtype)
        usable = finite(grad).view(-1, *[1] * (grad.dim() - 1))
        stepped = self.project(x, delta + step_size * self.steepest(grad))
        return torch.where(usable, stepped, delta)

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
        """The unit step along which a linear loss with gradient `grad` grows most, per image.

        L1 spreads it over several pixels.
        """

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


@dataclass(frozen=True)
class L1(Ball):
    """The absolute values of each image's delta add up to eps at most: L1(12) for CIFAR-10."""

    norm: ClassVar[str] = "l1"

    def onto_ball(self, delta: Tensor) -> Tensor:
        return self._shrunk(delta, delta.abs())

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """The nearest point of the ball and the pixel box of x together, x being in the box.

        One after the other would not do: the box takes most of a large pixel's change away, and
        the ball stays half empty. Source: Croce & Hein 2021 ("Mind the box"), section 2.
        """
        room = torch.where(delta > 0, self.high - x, x - self.low)
        return self._shrunk(delta, torch.minimum(delta.abs(), room.clamp_min(0)))

    def _shrunk(self, delta: Tensor, room: Tensor) -> Tensor:
        """The nearest perturbation to delta in the ball whose pixels stay within +-room.

        room: the sizes that delta's pixels may keep, at most their own. Every pixel loses the
        same amount `less` before the cut at its room (the conditions of Karush, Kuhn and Tucker).
        As `less` falls from the largest pixel's size, the length grows in straight pieces whose
        ends are known: the exact amount is found by sorting them.
        """
        # float64: the lengths of many pixels are added up
        size, room = delta.flatten(1).abs().double(), room.flatten(1).double()
        # a pixel starts to grow where less = size, and stops where it fills its room
        ends = torch.cat([size, size - room], 1)
        growing = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
        ends, order = ends.sort(dim=1, descending=True, stable=True)
        rate = growing.gather(1, order).cumsum(1)[:, :-1]
        length = (rate * (ends[:, :-1] - ends[:, 1:])).cumsum(1)
        piece = (length < self.eps).sum(1, keepdim=True).clamp_max(length.shape[1] - 1)
        over = length.gather(1, piece) - self.eps
        less = ends.gather(1, piece + 1) + over / rate.gather(1, piece).clamp_min(1)
        less = torch.where(room.sum(1, keepdim=True) <= self.eps, 0.0, less)
        kept = torch.minimum((size - less).clamp_min(0), room)
        return kept.to(delta.dtype).view_as(delta).copysign(delta)

    def ascend(self, x: Tensor, delta: Tensor, grad: Tensor, step_size: float) -> Tensor:
        """As every ball's, but pixels that stand at the box's edge get no share of the step."""
        return super().ascend(x, delta, self.movable(x + delta, grad), step_size)

    def sample_unclipped(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # shares of pixels + 1 exponentials are uniform over all shares that add up to 1
        size = torch.empty_like(x).exponential_(generator=generator)
        rest = x.new_empty(len(x)).exponential_(generator=generator)
        sign = torch.empty_like(x).uniform_(-1, 1, generator=generator)
        total = size.flatten(1).sum(1) + rest
        return (self.eps * size / total.view(-1, *[1] * (x.dim() - 1))).copysign(sign)

    def steepest(self, grad: Tensor) -> Tensor:
        """The signs of the hundredth of the pixels with the largest gradients, at least one.

        All of it in one pixel would be the best for a linear loss, but that pixel is soon at
        the box's edge. Source: Tramer & Boneh 2019 (SLIDE), with the share of its public code.
        """
        return sparse_sign(grad, grad.new_full((len(grad),), 0.01 * grad[:1].numel()))

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)


def sparse_sign(grad: Tensor, counts: Tensor) -> Tensor:
    """The unit L1 step along the signs of each image's `counts` [B] largest gradients.

    counts: rounded up, at least 1; equal gradients at the border are all taken. An image whose
    gradient is 0 everywhere gets 0.
    """
    size = grad.flatten(1).abs()
    last = counts.ceil().long().clamp(1, size.shape[1]) - 1
    border = size.sort(dim=1, descending=True).values.gather(1, last[:, None])
    sign = torch.where(size >= border, grad.flatten(1).sign(), 0.0)
    return (sign / sign.abs().sum(1, keepdim=True).clamp_min(1)).view_as(grad)


def finite(values: Tensor) -> Tensor:
    """Whether all of each image's values [B, ...] are finite, [B]."""
    # a finite number less itself is 0; on CPUs torch.isfinite takes ten times as long
    flat = values.flatten(1)
    return (flat - flat).sum(1) == 0


BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1}
