"""The loss around images along two directions, and the pictures that a large radius leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gratis.attacks.pgd import pgd
from gratis.balls import Linf
from gratis.evaluate.mode import as_evaluated
from gratis.losses import cross_entropy
from gratis.prober import Prober


@dataclass(frozen=True)
class Surface:
    """losses [n, n]: at x + a u + b v, mean over images; a by rows, b by columns, both from
    -radius to radius in pixel units.
    """

    losses: Tensor
    radius: float


def surfaces(
    model: nn.Module, x: Tensor, y: Tensor, *, radius: float, points: int = 11, seed: int = 0
) -> dict[str, Surface]:
    """Two loss surfaces around images x [B, C, H, W] with labels y [B], in eval mode and fp32.

    "adversarial": u is the sign of the input gradient, v is random; "random": both are random,
    each entry 1 or -1 with equal chance, drawn anew for each image.
    points: per axis, an odd number, so that the images themselves are among them.
    Source: the loss surfaces of Shafahi 2019. The paper states neither directions, range nor
    images: these are this package's choice. Points are not cut to the pixel range.
    """
    if points % 2 == 0:
        raise ValueError(f"points={points} must be odd, so that the centre is one of them")
    generator = torch.Generator().manual_seed(seed)
    with as_evaluated(model):
        u = Prober(model, norm="eval")(x, y).sign()
    v, w = (_signs(x, generator) for _ in range(2))
    offsets = torch.linspace(-radius, radius, points).tolist()
    with as_evaluated(model), torch.no_grad():
        return {
            name: Surface(
                torch.tensor(
                    [
                        [
                            float(cross_entropy(model(x + a * one + b * v), y).mean())
                            for b in offsets
                        ]
                        for a in offsets
                    ]
                ),
                radius,
            )
            for name, one in (("adversarial", u), ("random", w))
        }


def _signs(x: Tensor, generator: torch.Generator) -> Tensor:
    """1 or -1 for each entry of x, drawn on the CPU so that every device gets the same."""
    return (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1).to(x)


def iterated_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 20,
    towards: Tensor | None = None,
) -> Tensor:
    """x [B, C, H, W] after `steps` signed steps of eps / 10 up the loss, inside eps and [0, 1].

    towards: classes [B] whose loss is descended instead. No random start; eval mode and fp32.
    Source: BIM (Kurakin 2017), with which Shafahi 2019 makes its pictures at eps 30/255; the
    number and size of steps are this package's choice.
    """
    ball = Linf(eps)
    probe = Prober(model, norm="eval")
    aim, sign = (y, 1) if towards is None else (towards, -1)
    with as_evaluated(model):
        delta = pgd(
            lambda point: sign * probe(point, aim), x, ball, steps=steps, step_size=eps / 10
        )
    return ball.place(x, delta)
