"""Which images a model answers rightly before anything is done to them."""

from dataclasses import replace

import torch
from torch import Tensor

from gratis.attacks import Attacked
from gratis.attacks.confirming import right_at
from gratis.tasks import Classification, check_labels


def right_when_clean(attacked: Attacked) -> Tensor:
    """Whether the model is right about each image: bool [B].

    Raises ValueError where its answers and the labels do not go together, unless the task is one of
    the user's own, which knows what its labels are.
    """
    correct = attacked.correct

    def checked(logits: Tensor, y: Tensor) -> Tensor:
        check_labels(logits, y)
        return correct(logits, y)

    if getattr(correct, "__func__", None) is Classification.correct:
        attacked = replace(attacked, correct=checked)
    return right_at(attacked, torch.arange(len(attacked.x)), attacked.x)
