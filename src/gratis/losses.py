"""Losses per image: logits [B, K] and labels to [B]. Means are taken by whoever weighs them."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy [B] in fp32; y is class indices [B] or probabilities [B, K]."""
    return F.cross_entropy(logits.float(), y, reduction="none")


def cross_entropy_while_correct(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the images still classified as y [B]; 0, without gradient, for others.

    As an attack's loss it stops each image where it is first misclassified. Source: the
    MNIST code of Wong 2020, whose training at eps 0.3 otherwise sometimes never starts.
    """
    labels = y if y.dim() == 1 else y.argmax(1)
    return cross_entropy(logits, y) * (logits.argmax(1) == labels)
