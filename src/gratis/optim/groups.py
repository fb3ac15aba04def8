"""Settings of an optimizer's groups: put in while training, saved, and brought back."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Settings = Mapping[str, float | Tensor]
Schedule = Callable[[int, int], Settings]
"""(update counted from 0, update at which the schedule began) -> settings of an optimizer's groups
({"lr": ...})."""

WAYS = ("fused", "foreach", "capturable")
"""How an optimizer computes its step: the present process's choice, not a checkpoint's."""


def check_alike(optimizer: torch.optim.Optimizer) -> None:
    """ValueError where groups have different rates, all of which a schedule would set alike."""
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    if len(rates) > 1:
        found = ", ".join(f"{rate:g}" for rate in rates)
        raise ValueError(
            f"the optimizer's groups have the rates {found}, and the schedule would set them all "
            "alike; give them one rate, or leave schedule out and set theirs before each fit"
        )


def asked(schedule: Schedule, update: int, begun: int) -> Settings:
    """The schedule's settings for an update; ValueError for what is no mapping."""
    settings = schedule(update, begun)
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"the schedule gave a {type(settings).__name__}; a mapping of an optimizer group's "
            f'settings is needed: lambda update, begun: {{"lr": ...}}'
        )
    return settings


def put(group: dict[str, Any], settings: Settings) -> None:
    """Put settings into an optimizer's group; where a tensor stands it stays, with the value."""
    for name, value in settings.items():
        if not isinstance(group.get(name), Tensor):
            group[name] = value
        elif isinstance(value, Tensor):
            group[name].copy_(value)
        else:
            group[name].fill_(value)


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict, rates as plain numbers whatever they are while training."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])
    return state


def load(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up what `saved` gave, perhaps on another kind of device."""
    ways = [{k: v for k, v in group.items() if k in WAYS} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, way in zip(optimizer.param_groups, ways, strict=True):
        group.update(way)
    place_counts(optimizer)


def place_counts(optimizer: torch.optim.Optimizer) -> None:
    """Put PyTorch's counts of steps where each group's way of stepping looks for them: beside the
    parameter where it is fused or capturable, else on the host. Elsewhere a fused kernel reads
    what is not its own, and the other ways wait for the card at each parameter.
    """
    for group in optimizer.param_groups:
        if "capturable" not in group:
            continue
        beside = bool(group["capturable"] or group.get("fused"))
        for parameter in group["params"]:
            kept = optimizer.state.get(parameter, {})
            count = kept.get("step")
            if isinstance(count, Tensor):
                device = parameter.device if beside else torch.device("cpu")
                kept["step"] = count.to(device, torch.float32)
