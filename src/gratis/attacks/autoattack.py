"""AutoAttack, standard version: four attacks in sequence, each on what is still standing."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gratis import clock
from gratis.attacks.apgd import APGD, CLASSES_NEEDED
from gratis.attacks.confirming import confirmed
from gratis.attacks.fab import FAB
from gratis.attacks.packing import in_batches, portion
from gratis.attacks.search import Attack, Attacked, Part, shaped
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

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        run = [attack for attack in STANDARD if _fits(attack, classes)]
        left_out = " and ".join(attack.name for attack in STANDARD if attack not in run)
        numbers = {
            f"{attack.name} {what}": number
            for attack in run
            for what, number in attack.parameters(ball, classes).items()
            if what in ("restarts", "targets", "queries")
        }
        version = f"standard without {left_out}" if left_out else "standard"
        return {"version": version, "attacks": ", ".join(a.name for a in run), **numbers}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack. How each of the four fared goes
        into `attacked.parts`. Images whose success does not hold when the model is asked again go
        on to the next of them.
        """
        with torch.no_grad():
            classes = attacked.model(attacked.x[:1]).shape[1]
        attacked.meter.forwards += 1
        adversarial, broken = attacked.unbroken()
        claimed = broken.clone()
        for place, attack in enumerate(STANDARD):
            if not _fits(attack, classes):
                continue
            given = ~broken
            todo = given.nonzero().flatten()
            if not len(todo):
                break
            began, meter = clock.seconds(broken.device), Meter()
            tell = portion(attacked.tell, place / len(STANDARD), 1 / len(STANDARD))
            some = replace(attacked.of(todo), meter=meter, tell=tell)
            points, fooled = in_batches(attack, some)
            # a claim that does not hold ends nothing, or an attack could shield from the next ones
            broken[todo] = confirmed(some, points, fooled)
            better = shaped(fooled | ~claimed[todo], points)
            adversarial[todo] = torch.where(better, points, adversarial[todo])
            claimed[todo] |= fooled
            seconds = clock.seconds(broken.device) - began
            attacked.meter.add(meter)
            attacked.parts.append(Part(attack.name, given, given & broken, seconds, meter))
        return adversarial, broken | claimed


def _fits(attack: Attack, classes: int) -> bool:
    """Whether the attack's loss has a meaning among so many classes."""
    return not isinstance(attack, APGD) or classes >= CLASSES_NEEDED[attack.loss]
