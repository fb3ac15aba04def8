"""Losses per image: logits [B, K] and labels to [B]. Means are taken by whoever weighs them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def hard(y: Tensor) -> Tensor:
    """The class [B] of each label: y itself, or the likeliest of probabilities [B, K]."""
    return y if y.dim() == 1 else y.argmax(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy [B] in fp32 or better; y is class indices [B] or probabilities [B, K]."""
    return F.cross_entropy(_wide(logits), y, reduction="none")


def cross_entropy_while_correct(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the images still classified as y [B]; 0, without gradient, for others.

    As an attack's loss it stops each image where it is first misclassified. Source: the
    MNIST code of Wong 2020, whose training at eps 0.3 otherwise sometimes never starts.
    """
    return cross_entropy(logits, y) * (logits.argmax(1) == hard(y))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best other class's logit minus the label's, [B]; above 0 where misclassified.

    Source: Carlini & Wagner 2017, f6 without its cap. Unlike the cross entropy it keeps its
    gradient however large the logits are.
    """
    labels = hard(y).unsqueeze(1)
    logits = _wide(logits)
    others = logits.scatter(1, labels, -torch.inf)
    return others.amax(1) - logits.gather(1, labels).squeeze(1)


def towards_another(logits: Tensor, y: Tensor, shares: Tensor) -> Tensor:
    """Minus the cross entropy [B] of other labels: climbing it leads towards them.

    shares: uniform in [0, 1), [B]; each becomes an offset from y among the K classes, 0 included.
    Source: the targeted attack of AdvProp (Xie 2020).
    """
    classes = logits.shape[1]
    return -cross_entropy(logits, (hard(y) + (shares * classes).long()) % classes)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio [B]: the margin over the gap of first to third best logit.

    Neither a shift nor a scale of the logits changes it. Needs three classes.
    Source: Croce & Hein 2020, equation 6.
    """
    logits = _wide(logits)
    best = logits.topk(3, dim=1).values
    return margin(logits, y) / (best[:, 0] - best[:, 2] + 1e-12)


def dlr_towards(logits: Tensor, y: Tensor, towards: Tensor) -> Tensor:
    """Targeted difference of logits ratio [B], climbing towards classes `towards` [B].

    Needs four classes. Source: Croce & Hein 2020, equation 7.
    """
    logits = _wide(logits)
    best = logits.topk(4, dim=1).values
    gap = logits.gather(1, hard(y).unsqueeze(1)) - logits.gather(1, towards.unsqueeze(1))
    return -gap.squeeze(1) / (best[:, 0] - (best[:, 2] + best[:, 3]) / 2 + 1e-12)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
