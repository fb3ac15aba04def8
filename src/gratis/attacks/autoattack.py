"""AutoAttack, standard version: four attacks in sequence, each on what is still standing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gratis.attacks.apgd import APGD, CLASSES_NEEDED
from gratis.attacks.fab import FAB
from gratis.attacks.search import Attack, Attacked
from gratis.attacks.square import Square
from gratis.balls import Ball

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
    restarts, targets and queries. Differs from the code: see each attack; with 2 or 3 classes,
    where the targeted DLR has no meaning, apgd-t is left out. Linf alone, as Square is.
    """

    name: str

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        return {"version": "standard", "attacks": ", ".join(a.name for a in STANDARD)}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack."""
        with torch.no_grad():
            classes = attacked.model(attacked.x[:1]).shape[1]
        attacked.meter.forwards += 1
        adversarial, broken = attacked.unbroken()
        for attack in STANDARD:
            if isinstance(attack, APGD) and classes < CLASSES_NEEDED[attack.loss]:
                continue
            todo = (~broken).nonzero().flatten()
            if not len(todo):
                break
            adversarial[todo], broken[todo] = attack(attacked.of(todo))
        return adversarial, broken
