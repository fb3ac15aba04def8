"""AutoAttack, standard version: four attacks in sequence, each on what is still standing."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gratis import clock
from gratis.attacks.apgd import APGD, CLASSES_NEEDED
from gratis.attacks.fab import FAB
from gratis.attacks.packing import packed
from gratis.attacks.search import Attack, Attacked, Part
from gratis.attacks.square import Square
from gratis.balls import Ball
from gratis.budget import Meter

STANDARD: tuple[Attack, ...] = (
    APGD("apgd-ce"),
    APGD("apgd-t", loss="dlr-t"),
    FAB("fab-t"),
    Square("square"),
)


@dataclass(frozen=True)
class AutoAttack:
    """APGD on cross entropy, targeted APGD on DLR, targeted FAB, and Square.

    Source: Croce & Hein 2020, section 6: the standard version, with its numbers of steps,
    restarts, targets and queries; in L1 Croce & Hein 2021 ("Mind the box") and the released
    code: apgd-ce from 5 starts, apgd-t towards 5 classes. Differs from the code: see each attack;
    with 2 or 3 classes, where the targeted DLR has no meaning, apgd-t is left out.
    """

    name: str

    packs: ClassVar[bool] = True

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        numbers = {
            f"{attack.name} {what}": number
            for attack in STANDARD
            for what, number in attack.parameters(ball).items()
            if what in ("restarts", "targets", "queries")
        }
        return {"version": "standard", "attacks": ", ".join(a.name for a in STANDARD), **numbers}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack. How each of the four fared goes
        into `attacked.parts`.
        """
        with torch.no_grad():
            classes = attacked.model(attacked.x[:1]).shape[1]
        attacked.meter.forwards += 1
        adversarial, broken = attacked.unbroken()
        for place, attack in enumerate(STANDARD):
            if isinstance(attack, APGD) and classes < CLASSES_NEEDED[attack.loss]:
                continue
            given = ~broken
            todo = given.nonzero().flatten()
            if not len(todo):
                break
            began, meter = clock.seconds(broken.device), Meter()
            batches = packed(todo, attacked)
            for done, rows in enumerate(batches):
                some = replace(attacked.of(rows), meter=meter)
                adversarial[rows], broken[rows] = attack(some)
                attacked.tell((place + (done + 1) / len(batches)) / len(STANDARD))
            seconds = clock.seconds(broken.device) - began
            attacked.meter.add(meter)
            attacked.parts.append(Part(attack.name, given, given & broken, seconds, meter))
        return adversarial, broken
