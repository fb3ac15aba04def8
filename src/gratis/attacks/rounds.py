"""Attacks that go over their images several times: each time over those that still stand."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from gratis.attacks.packing import packed
from gratis.attacks.search import Attacked
from gratis.losses import hard

Round = TypeVar("Round")


def in_rounds(
    attacked: Attacked,
    rounds: Sequence[Round],
    go: Callable[[Attacked, Tensor, Round], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """What an attack of such rounds returns; see Attack.

    go: attacks a batch, given with its rows [n], for one round: (points, broken). Each round is
    made of all images that are not broken yet, packed anew, before the next one begins.
    """
    adversarial, broken = attacked.unbroken()
    for place, each in enumerate(rounds):
        batches = packed((~broken).nonzero().flatten(), attacked)
        for done, rows in enumerate(batches):
            adversarial[rows], broken[rows] = go(attacked.of(rows), rows, each)
            attacked.tell((place + (done + 1) / len(batches)) / len(rounds))
    return adversarial, broken


def other_classes(attacked: Attacked) -> Tensor:
    """All classes but an image's label [N, K - 1], from the likeliest at the clean image down."""
    found = []
    with torch.no_grad():
        for rows in packed(torch.arange(len(attacked.x)), attacked):
            logits = attacked.model(attacked.x[rows])
            attacked.meter.forwards += len(rows)
            labels = hard(attacked.y[rows]).unsqueeze(1)
            ranked = logits.scatter(1, labels, -torch.inf).argsort(1, descending=True)
            found.append(ranked[:, :-1])
    return torch.cat(found)
