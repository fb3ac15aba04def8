"""How a model is asked while it is evaluated: in eval mode, and in whole fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode, parameters without gradients, no autocast and no TF32; all put back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    device = next((p.device.type for p, _ in wanted), "cpu")
    try:
        with torch.autocast(device, enabled=False), whole_fp32():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


@contextmanager
def whole_fp32() -> Iterator[None]:
    """Within it NVIDIA cards multiply fp32 as fp32.

    By default their convolutions round to TF32's 10 bits first: a point that fools the model
    there may not fool it as others run it, and the other way round.
    """
    cudnn: Any = torch.backends.cudnn  # whose parts its types do not know
    parts = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [part.fp32_precision for part in parts]
    old = _old_switches()
    try:
        # both sets of switches: PyTorch lets nobody ask where they contradict each other
        if old is not None:
            torch.backends.cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        if old is not None:
            torch.backends.cudnn.allow_tf32 = old[0]
            torch.set_float32_matmul_precision(old[1])
        for part, own in zip(parts, before, strict=True):
            part.fp32_precision = own


def _old_switches() -> tuple[bool, str] | None:
    try:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # someone has used the new ones
        return None
