"""No attack waits for a device at a step: counted on the stand-in, whose kernels compute."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gratis import L1, L2, Linf
from gratis.attacks import Attack, Attacked, build_attack
from gratis.attacks.apgd import APGD
from gratis.attacks.fab import FAB
from gratis.attacks.search import image_keys
from gratis.attacks.square import Square
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.losses import cross_entropy
from gratis.tasks import Classification
from tests.stand_in_gpu.gpu import StandInGpu
from tests.stand_in_gpu.learning import network

IMAGES = 8
STEPS = 12, 19


@pytest.mark.parametrize("ball", [Linf(1e-9), L2(1e-9), L1(1e-9)], ids=["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "made",
    [
        lambda n: APGD("apgd-ce", steps=n, restarts=1),
        lambda n: APGD("apgd-t", "dlr-t", steps=n, targets=2),
        lambda n: FAB("fab-t", steps=n, targets=2),
        lambda n: Square("square", queries=n),
        lambda n: build_attack(f"pgd-{n}-2"),
        lambda n: build_attack(f"pgd-{n}:bf16"),
    ],
    ids=["apgd-ce", "apgd-t", "fab-t", "square", "pgd", "pgd:bf16"],
)
def test_attacks_wait_for_nothing_at_a_step(
    made: Callable[[int], Attack], ball: Ball, gpu: StandInGpu
) -> None:
    """Seven steps more, among which no broken image may leave, are not one wait more."""
    few, more = (waits(made(steps), ball, network().eval(), gpu) for steps in STEPS)
    assert few == more


def test_a_wait_at_each_step_is_found_out(gpu: StandInGpu) -> None:
    reading = nn.Sequential(network(), Reading()).eval()
    few, more = (waits(build_attack(f"pgd-{n}"), Linf(1e-9), reading, gpu) for n in STEPS)
    assert more >= few + 7


class Reading(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        assert logits.sum().item() < float("inf")
        return logits


def waits(attack: Attack, ball: Ball, model: nn.Module, gpu: StandInGpu) -> int:
    """How often an attack waits on images that are right, and stay so in so small a ball."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(IMAGES, 3, 12, 12, generator=generator).cuda()
    with torch.no_grad():
        y = model(x).argmax(1)
    given = Attacked(
        *(model, x, y, ball, cross_entropy, Classification().correct),
        *(image_keys(0, x, y), Meter()),
    )
    gpu.waits.clear()
    attack(given)
    assert given.meter.forwards + given.meter.probes >= STEPS[0] * IMAGES, "each step was made"
    return gpu.waits.total()
