"""Optimizers by name and learning-rate schedules."""

from typing import Any

import torch
from torch import nn

from gratis.nn.batchnorm import parameters_by_decay

__all__ = ["build_optimizer"]


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: str = "all",
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the model's parameters.

    decay: "all", or "weights" to spare norms and biases (Shafahi 2019's CIFAR code and
    Wong 2020's ImageNet code spare them; Wong 2020's CIFAR code does not).
    momentum: SGD's; Adam's first beta.
    """
    groups: list[dict[str, Any]]
    if decay == "weights":
        decayed, exempt = parameters_by_decay(model)
        groups = [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}]
    else:
        groups = [{"params": list(model.parameters())}]
    if name == "sgd":
        return torch.optim.SGD(
            groups, learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    adam = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return adam(groups, learning_rate, betas=(momentum, 0.999), weight_decay=weight_decay)
