"""YOPO: one full backward pass serves several steps of the perturbation through the first layer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gratis.balls import Ball
from gratis.budget import PASS
from gratis.passes import Batch, Method, Pass, Probe
from gratis.prober import Prober


@dataclass
class Yopo(Method):
    """m full passes an update, each followed by n steps of the perturbation through layer one.

    The perturbation meets the loss only through the first layer's output z: with p = dloss/dz
    from a full pass, each step climbs <layer one (x + delta), p>, at the first layer's price.
    The gradients of the m passes, and of <layer one (x + delta), p> at the delta reached, add
    up to one update: divide the learning rate by m, as the paper's code does.

    ball: the threat model.  rounds: m.  steps: n.
    step_size: pixel units; None takes eps / 4 (2/255 at 8/255).
    first_layer: the module's name in the network (or the module); None takes the first
        convolution or linear layer that the network runs. What comes before it must treat each
        image by itself: normalisation by constants, no batch norm and no dropout.
    Costs m + m (n + 1) c passes, c the first layer's share of the multiply-adds; before the
    network is known (bind), c is taken as 0.
    Source: Zhang 2019 ("You Only Propagate Once"), algorithm 1; released YOPO-m-n code.
    Differs from the code: the layer-one gradients of the full passes and of the steps are both
    kept, which is what that code does in effect; statistics of batch norms move in the m passes
    only; no extra forward for logging.
    """

    ball: Ball
    rounds: int = 5
    steps: int = 3
    step_size: float | None = None
    first_layer: str | nn.Module | None = None
    share: float = field(default=0.0, init=False, repr=False, compare=False)
    _layer: nn.Module | None = field(default=None, init=False, repr=False, compare=False)
    _model: nn.Module | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"rounds={self.rounds} and steps={self.steps} must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")

    @property
    def resolved_step_size(self) -> float:
        return self.ball.eps / 4 if self.step_size is None else self.step_size

    @property
    def own_loop(self) -> bool:
        return False

    @property
    def loss_scaling(self) -> bool:
        return False

    def bind(self, model: nn.Module, x: Tensor) -> None:
        """Find the first layer and its share of the multiply-adds (of a forward of one image)."""
        if self._model is model:
            return
        from torch.utils.flop_counter import FlopCounterMode  # slow to import, for YOPO alone

        ran: list[nn.Module] = []
        hooks = [
            module.register_forward_hook(lambda module, *_: ran.append(module))
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm | _DropoutNd)
        ]
        as_evaluated = Prober(model, norm="eval").as_probed
        try:
            with as_evaluated(), torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(x[:1])
        finally:
            for hook in hooks:
                hook.remove()
        layer = self._chosen(model, ran)
        if any(m for m in ran[: ran.index(layer)] if not isinstance(m, nn.Conv2d | nn.Linear)):
            raise ValueError(
                "a batch norm or dropout runs before the first layer, so that its output is not "
                "each image's own; YOPO needs a network that begins with the layer"
            )
        with as_evaluated(), torch.no_grad(), FlopCounterMode(display=False) as alone:
            up_to(model, layer, x[:1])
        self.share = alone.get_total_flops() / max(1, counter.get_total_flops())
        if not all(parameter.requires_grad for parameter in layer.parameters()):
            raise ValueError(
                "the first layer is frozen, and yopo learns its weights from gradients of its own; "
                "leave it out of model.freeze, or train by another method"
            )
        self._model, self._layer = model, layer

    def _chosen(self, model: nn.Module, ran: list[nn.Module]) -> nn.Module:
        if isinstance(self.first_layer, nn.Module):
            layer: nn.Module | None = self.first_layer
        elif self.first_layer is not None:
            layer = dict(model.named_modules()).get(self.first_layer)
            if layer is None:
                raise ValueError(
                    f"first_layer: the network has no module {self.first_layer!r}; it has "
                    f"{', '.join(name for name, _ in model.named_modules() if name)}"
                )
        else:
            layer = next((m for m in ran if isinstance(m, nn.Conv2d | nn.Linear)), None)
        if layer is None or layer not in ran:
            raise ValueError(
                "first_layer: the network's forward runs no such convolution or linear layer; "
                "name one that it does"
            )
        return layer

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        x, y = batch.x, batch.y
        assert self._model is not None
        model, layer = self._model, self._layer
        assert layer is not None
        delta = self.ball.into_box(x, batch.draw(x, self.ball.sample_unclipped))
        for this_round in range(1, self.rounds + 1):
            seen: list[Tensor] = []
            hook = layer.register_forward_hook(lambda _, __, output: _keep(output, seen))  # noqa: B023
            try:
                yield Pass(self.ball.place(x, delta), y, update=False)
            finally:
                hook.remove()
            costate = seen[0].grad
            if costate is None:
                raise RuntimeError("the pass handed out was not learned from; use Learner.fit")
            costate = costate.detach()
            for _ in range(self.steps):
                point = self.ball.place(x, delta).requires_grad_()
                with torch.enable_grad():
                    value = (up_to(model, layer, point).float() * costate).sum()
                (gradient,) = torch.autograd.grad(value, point)
                delta = self.ball.ascend(x, delta, gradient, self.resolved_step_size)

            def along(model: nn.Module, point: Tensor, y: Tensor) -> tuple[Tensor, None]:
                return (up_to(model, layer, point).float() * costate).sum(), None  # noqa: B023

            yield Pass(
                self.ball.place(x, delta),
                y,
                loss=along,
                extra=self._steps_thirds(len(x)) - PASS * len(x),
                update=this_round == self.rounds,
            )

    def _steps_thirds(self, images: int) -> int:
        """n steps and one weight gradient through the first layer, in whole thirds."""
        return round(PASS * (self.steps + 1) * self.share * images)

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return (self.rounds * (PASS * images + self._steps_thirds(images)),)

    @property
    def cost(self) -> float:
        """Passes per image and data pass."""
        return self.rounds * (1 + (self.steps + 1) * self.share)


class _ReachedError(Exception):
    """Carries a layer's output out of the network's forward."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def up_to(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` puts out when `model` runs on x; nothing behind the layer is computed."""

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> None:
        raise _ReachedError(output)

    hook = layer.register_forward_hook(leave)
    try:
        model(x)
    except _ReachedError as reached:
        return reached.output
    finally:
        hook.remove()
    raise AssertionError("the layer did not run")


def _keep(output: Tensor, seen: list[Tensor]) -> Tensor:
    """Remember a layer's output, whose gradient is wanted; what goes on is a copy of it, since
    an activation may work in place.
    """
    output.retain_grad()
    seen.append(output)
    return output.clone()
