"""Layer-wise rates for large batches: LARS and LAMB.

Both lengthen or shorten each tensor's step by a ratio that makes it a share of that tensor's own
norm, so that no layer is torn apart by a high rate while another hardly moves.
"""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
Parameters = Iterable[Tensor] | Iterable[Group]


class _Layerwise(Optimizer):
    """What both share: one pass over the groups, with the tensors that have a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; `closure`, if given, computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in weights]
            if any(gradient.is_sparse for gradient in gradients):
                raise ValueError(
                    f"{type(self).__name__} needs dense gradients and was given sparse ones; "
                    "make the embedding with sparse=False, or use torch.optim.SparseAdam"
                )
            if weights:
                self._move(group, weights, gradients)
        return loss

    def _move(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError

    def _states(self, weights: list[Tensor], *buffers: str) -> list[dict[str, Any]]:
        """The weights' states; buffers of a weight seen for the first time are zero."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["step"] = 0
                for name in buffers:
                    self.state[weight][name] = torch.zeros_like(weight)
            self.state[weight]["step"] += 1
        return [self.state[weight] for weight in weights]


class LARS(_Layerwise):
    """Momentum SGD whose gradient is scaled tensor by tensor (You 2017, algorithm 1).

        ratio = trust * |w| / (|g| + weight_decay * |w|)
        v <- momentum * v + ratio * (g + weight_decay * w);   w <- w - lr * v

    The ratio is taken before momentum, of gradient and weight as they are: v mixes steps of past
    ratios. It is 1 where |w| or |g| is 0, and in parameter groups with `layerwise: False`, which
    so take plain SGD steps at the whole of `lr` (about 1 / trust times as long).

    Weights of any shape, dense gradients (ValueError for sparse ones). A gradient that is not a
    number makes its weight so too: nothing is hidden.
    Differs from the paper: the rate multiplies v on its way out, as in PyTorch's SGD, rather than
    what enters v; the two are the same while the rate stays the same.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        _check_at_least_0(lr=lr, weight_decay=weight_decay, trust=trust)
        _check_shares(momentum=momentum)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "layerwise": True,
        }
        super().__init__(params, defaults)

    def _move(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        decay = group["weight_decay"]
        steps = torch._foreach_add(gradients, weights, alpha=decay)
        if group["layerwise"]:
            sizes, slopes = _norms(weights), _norms(gradients)
            ratios = group["trust"] * sizes / (slopes + decay * sizes)
            _scale(steps, ratios, sizes, slopes)
        momenta = [s["momentum_buffer"] for s in self._states(weights, "momentum_buffer")]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, steps)
        torch._foreach_add_(weights, momenta, alpha=-group["lr"])


class LAMB(_Layerwise):
    """Adam's direction, scaled tensor by tensor to the weight's norm (You 2020, algorithm 2).

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        u <- m / (sqrt(v) + eps) + weight_decay * w
        w <- w - lr * min(|w|, weight_norm_clip) / |u| * u

    The ratio is that of the finished direction, decay included. It is 1 where |w| or |u| is 0,
    and in parameter groups with `layerwise: False`, which so take AdamW's steps.
    bias_correction: divide m and v by what their start at zero has cost them, as Adam does.
    weight_norm_clip: the largest norm a weight counts with; None for no limit.

    Weights of any shape, dense gradients (ValueError for sparse ones). A gradient that is not a
    number makes its weight so too: nothing is hidden.
    Differs from the paper: no bias correction unless asked for and norms count up to 10, as in
    the code of distributed adversarial training (Zhang 2022).
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = False,
        weight_norm_clip: float | None = 10.0,
    ) -> None:
        _check_at_least_0(lr=lr, eps=eps, weight_decay=weight_decay)
        _check_shares(beta1=betas[0], beta2=betas[1])
        if weight_norm_clip is not None and not weight_norm_clip > 0:
            raise ValueError(
                f"weight_norm_clip={weight_norm_clip} would stop every weight; "
                "give a positive number, or None for no limit"
            )
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "weight_norm_clip": weight_norm_clip,
            "layerwise": True,
        }
        super().__init__(params, defaults)

    def _move(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        states = self._states(weights, "exp_avg", "exp_avg_sq")
        beta1, beta2 = group["betas"]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        if group["bias_correction"]:
            # each weight by its own count: some may have had no gradient in some updates
            means = list(torch._foreach_div(means, [1 - beta1 ** s["step"] for s in states]))
            torch._foreach_div_(roots, [sqrt(1 - beta2 ** s["step"]) for s in states])
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(means, roots)
        torch._foreach_add_(directions, weights, alpha=group["weight_decay"])
        if group["layerwise"]:
            sizes, lengths = _norms(weights), _norms(directions)
            clip = group["weight_norm_clip"]
            counted = sizes if clip is None else sizes.clamp(max=clip)
            _scale(directions, counted / lengths, sizes, lengths)
        torch._foreach_add_(weights, directions, alpha=-group["lr"])


def _norms(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """[T] Euclidean norms."""
    return torch.stack(torch._foreach_norm(tensors))


def _scale(
    steps: list[Tensor] | tuple[Tensor, ...], ratios: Tensor, sizes: Tensor, lengths: Tensor
) -> None:
    """Multiply each step by its ratio, or by 1 where one of the two norms [T] is 0."""
    # no norm that is not a number exceeds 0: the ratio is 1, and what is in the step stays there
    ratios = torch.where((sizes > 0) & (lengths > 0), ratios, 1.0)
    torch._foreach_mul_(steps, list(ratios.unbind()))


def _check_at_least_0(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}={value} must be 0 or more")


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be 0 or more and below 1")
