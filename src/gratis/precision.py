"""Which precision weights' products get where the recipe leaves that to the machine."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from gratis.casts import has_bf16
from gratis.learner import Learner
from gratis.run import settled

EMULATED = (
    "this machine has no instructions for bf16 and emulates them: a step took over ten times "
    "that of fp32 where it was measured; engine.precision=auto takes fp32 on such machines"
)


def named(precision: str, device: torch.device) -> str:
    """A recipe's precision, "auto" being "bf16" where `device` has it and "fp32" elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) else "fp32"


def settle(
    precision: str,
    learner: Learner,
    *,
    records: Iterable[Mapping[str, Any]] = (),
    record: Callable[..., None],
) -> None:
    """Let all processes, and a run's every continuation, take the same for precision "auto".

    records: the run's log, where an earlier decision stands.  record: writes an event into it.
    The leading process decides, once in a run's life; the others do as it found, and so does a
    run that is taken up again, on a machine of another kind perhaps.
    """
    processes, device = learner.processes, learner.device
    if precision == "auto":
        learner.set_precision(processes.led(lambda: _decided(device, records, record)))
    elif precision == "bf16" and processes.leads and not learner.updates and not has_bf16(device):
        record("warning", update=0, message=EMULATED)


def _decided(
    device: torch.device, records: Iterable[Mapping[str, Any]], record: Callable[..., None]
) -> str:
    """ "bf16" or "fp32": as decided earlier, or now and for good."""
    earlier = settled(records, "precision")
    if earlier is not None:
        return str(earlier)
    used = named("auto", device)
    reason = f"the {device.type} has {'' if used == 'bf16' else 'no '}instructions for bf16"
    record("precision", update=0, used=used, reason=reason)
    return used
