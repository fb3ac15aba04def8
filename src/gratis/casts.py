"""Precisions: by name, which of them a machine has, and weights cast once for a whole update."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies in bf16 by instructions of its own.

    Asked of the hardware rather than timed, so that a recipe and a seed give the same run
    whatever else the machine is doing.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        # AVX-512 by itself is not enough, though PyTorch's public question is content with it
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def casts_kept() -> Iterator[None]:
    """Within it autocast casts each weight once, for all probes and passes until it is cleared.

    By itself it forgets its casts at the end of each forward. Autocast is not on in here: what
    methods compute between passes is left in its own precision.
    """
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
