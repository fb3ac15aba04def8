"""Autocast: precisions by name, and weights cast once for a whole update."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


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
