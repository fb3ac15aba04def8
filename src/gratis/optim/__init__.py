"""Optimizers by name and learning-rate schedules."""

from typing import Any

import torch
from torch import nn

from gratis.nn.batchnorm import parameters_by_decay
from gratis.optim.layerwise import LAMB, LARS
from gratis.optim.muon import build_muon

__all__ = ["LAMB", "LARS", "build_optimizer"]


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: str = "all",
    fallback: float = 1.0,
    layerwise: str = "all",
    bias_correction: bool = False,
    weight_norm_clip: float | None = 10.0,
) -> torch.optim.Optimizer:
    """SGD, Adam, AdamW, Muon, LARS or LAMB over the model's parameters.

    decay: "all", or "weights" to spare norms and biases (Shafahi 2019's CIFAR code and
    Wong 2020's ImageNet code spare them; Wong 2020's CIFAR code does not).
    momentum: SGD's, Muon's and LARS's; the first beta of Adam, AdamW and LAMB.
    layerwise: whose steps LARS and LAMB scale: "all", or "weights" to spare norms and biases,
    with or without sparing them decay.  bias_correction, weight_norm_clip: LAMB's.
    fallback: Muon's (see optim/muon.py).
    Raises ValueError for muon where timm is not installed.
    """
    groups: list[dict[str, Any]]
    if name == "muon":
        return build_muon(model, learning_rate, momentum, nesterov, weight_decay, decay, fallback)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed, exempt = (
        [parameter for parameter in part if parameter.requires_grad]
        for part in parameters_by_decay(model)
    )
    spared: dict[str, Any] = {"weight_decay": 0.0} if decay == "weights" else {}
    if name in ("lars", "lamb") and layerwise == "weights":
        spared["layerwise"] = False
    if spared:
        groups = [{"params": decayed}, {"params": exempt, **spared}]
    else:
        groups = [{"params": trained}]
    if name == "sgd":
        return torch.optim.SGD(
            groups, learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    if name == "lars":
        return LARS(groups, learning_rate, momentum=momentum, weight_decay=weight_decay)
    if name == "lamb":
        return LAMB(
            groups,
            learning_rate,
            betas=(momentum, 0.999),
            weight_decay=weight_decay,
            bias_correction=bias_correction,
            weight_norm_clip=weight_norm_clip,
        )
    adam = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return adam(groups, learning_rate, betas=(momentum, 0.999), weight_decay=weight_decay)
