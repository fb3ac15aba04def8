"""Muon: steps of convolutions are orthogonalised; timm's, in a precision that the machine has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from gratis.casts import has_bf16


def build_muon(
    model: nn.Module,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay: str,
    fallback: float,
) -> torch.optim.Optimizer:
    """Muon for the model's convolutions; all else takes AdamW steps at `fallback` times the rate.

    decay: "all", or "weights" to spare norms and biases. A step is scaled as an AdamW step is.
    Source: Jordan 2024 ("Muon: an optimizer for hidden layers"), as timm has it.
    Differs from timm: where the device has no bf16, the products are in fp32; emulated, a step of
    ResNet9 of width 96 took 9.8 seconds of a core (AVX2) instead of 0.6.
    Raises ValueError where timm is not installed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    spared = 0.0 if decay == "weights" else weight_decay
    others = [p for p in trained if p.ndim != 4]
    matrices, vectors = [p for p in others if p.ndim > 1], [p for p in others if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim == 4]},
        {"params": matrices, "use_fallback": True},
        {"params": vectors, "use_fallback": True, "weight_decay": spared},
    ]
    optimizer: torch.optim.Optimizer = _class()(
        groups,
        lr=learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        fallback_lr_scale=fallback,
    )
    return optimizer


def _class() -> Any:
    """timm's class; it may be absent, and takes long to import."""
    try:
        import timm.optim.muon as theirs
    except ImportError as error:
        raise ValueError("optimizer muon needs timm: pip install gratis[timm]") from error

    class Muon(theirs.Muon):
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            devices = {p.device for group in self.param_groups for p in group["params"]}
            if all(has_bf16(device) for device in devices):
                return super().step(closure)  # type: ignore[no-untyped-call]
            with _in_fp32(theirs):
                return super().step(closure)  # type: ignore[no-untyped-call]

    return Muon


@contextmanager
def _in_fp32(theirs: Any) -> Iterator[None]:
    """Within it timm orthogonalises in fp32, which it can, but gives no setting for."""
    in_bf16 = theirs.zeropower_via_newtonschulz
    theirs.zeropower_via_newtonschulz = partial(in_bf16, dtype=torch.float32)
    try:
        yield
    finally:
        theirs.zeropower_via_newtonschulz = in_bf16
