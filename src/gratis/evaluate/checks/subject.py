"""What is checked: a model, the images it was evaluated on, and attacks on some of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gratis.attacks import PGD, Attack, autoattack, build_attack
from gratis.attacks.apgd import APGD
from gratis.attacks.autoattack import AutoAttack
from gratis.attacks.compatible import FastCodePGD
from gratis.attacks.fab import FAB
from gratis.attacks.search import STEPS_BETWEEN_DROPS
from gratis.attacks.square import Square
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.evaluate.robustness import Robustness, robust_accuracy
from gratis.names import spell
from gratis.tasks import Classification

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

LONG = 50
"""Steps from which projected gradient counts as a strong attack."""


@dataclass
class Subject:
    """The model under check; attacks run once and are remembered.

    found: what the evaluation measured; alone: whether each of its columns is one attack alone.
    classes: logits of each image.  meter: what the checks have cost so far.
    columns: what stood under attacks run here.  parts: for each attack within AutoAttack, which
    images [N] it was given and which of them it broke.
    """

    model: nn.Module
    batches: Batches
    found: Robustness
    ball: Ball
    task: Classification
    seed: int
    alone: bool
    surrogate: nn.Module | None
    history: tuple[float, ...] | None
    classes: int = 0
    randomised: bool = False
    differentiable: bool = True
    meter: Meter = field(default_factory=Meter)
    columns: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return len(self.found.robust)

    @property
    def right(self) -> Tensor:
        """The images right when clean, bool [N]: the only ones that attacks are given."""
        return self.found.correct[:, 0]

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def share(self, of: Tensor) -> float:
        return int(of.sum()) / self.images

    def percent(self, of: Tensor) -> float:
        """Images flagged in `of` [N] as a percentage of all that were evaluated."""
        return 100 * int(of.sum()) / self.images

    # --- images

    def chosen(self, among: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(places among all [b], x [b, C, H, W], y [b]) of the images flagged in `among` [N]."""
        first = 0
        for x, y in self.batches():
            rows = among[first : first + len(x)].nonzero().flatten()
            if len(rows):
                yield rows + first, x[rows].to(self.device), y[rows].to(self.device)
            first += len(x)

    def first(self, count: int) -> Tensor:
        """The first `count` images that are right when clean, bool [N]."""
        return self.right & (self.right.cumsum(0) <= count)

    def at_once(self, count: int) -> tuple[Tensor, Tensor]:
        """(x, y) of the first `count` images that are right when clean."""
        parts = list(self.chosen(self.first(count)))
        return torch.cat([x for _, x, _ in parts]), torch.cat([y for _, _, y in parts])

    # --- attacks

    def given(self, name: str) -> Tensor | None:
        """The evaluation's own column of an attack, where it has one for the attack alone."""
        if name in self.columns:
            return self.columns[name]
        place = self.found.attacks.index(name) + 1 if name in self.found.attacks else 0
        return self.found.correct[:, place] if place == 1 or (place and self.alone) else None

    def standing(self, name: str, among: Tensor | None = None, ball: Ball | None = None) -> Tensor:
        """The images of `among` (all that are right) that withstand an attack, bool [N]."""
        if among is None and ball is None:
            if (known := self.given(name)) is None:
                known = self.columns[name] = self._attacked(name, self.right, self.ball)
            return known
        return self._attacked(name, self.right if among is None else among, ball or self.ball)

    def _attacked(self, name: str, among: Tensor, ball: Ball) -> Tensor:
        """Runs the attack; of one made of parts, remembers how those fared."""
        out = torch.zeros_like(self.right)
        rows = among & self.right
        if bool(rows.any()):
            loader = ((x, y) for _, x, y in self.chosen(rows))
            measured = robust_accuracy(
                self.model, loader, [name], ball=ball, task=self.task, seed=self.seed
            )
            out[rows] = measured.correct[:, 1]
            for meter in measured.meters:
                self.meter.add(meter)
            for part in measured.parts[0]:
                given, broken = out.clone(), out.clone()
                given[rows], broken[rows] = part.given, part.broken
                self.parts[part.attack] = (given, broken)
        return out

    def price(self, name: str, among: Tensor | None = None) -> float:
        """The most that `standing` costs, in passes per evaluated image; 0 for what is known."""
        if among is None and self.given(name) is not None:
            return 0.0
        # besides the attack: the clean answer, and the model asked again about what was broken
        each = (thirds(build_attack(name), self.ball, self.classes) + 2) / 3
        return each * self.share(self.right if among is None else among)

    # --- the evaluation's own attacks

    @property
    def climber(self) -> PGD:
        """The evaluation's longest projected gradient on the loss from random starts.

        Where that has fewer than 50 steps: PGD-50 with its step size.
        """
        own = [
            attack
            for attack in map(build_attack, self.found.attacks)
            if isinstance(attack, PGD)
            and (attack.loss, attack.start) == ("cross-entropy", "random")
        ]
        best = max(own, key=lambda a: (a.steps, a.restarts), default=PGD("pgd-50", LONG))
        if best.steps >= LONG and self.given(best.name) is not None:
            return best
        return self.variant(best, LONG, 1)

    @property
    def steps(self) -> int:
        """The most steps, or queries, that an attack of the evaluation takes."""
        return max(
            (
                LONG
                if isinstance(attack, AutoAttack)
                else getattr(attack, "steps", 0) or getattr(attack, "queries", 0)
                for attack in map(build_attack, self.found.attacks)
            ),
            default=0,
        )

    def variant(self, attack: PGD, steps: int, restarts: int) -> PGD:
        """PGD of the same step size with so many steps and restarts; it has the same starts."""
        name = f"pgd-{steps}" + (f"-{restarts}" if restarts > 1 else "")
        if attack.alpha is not None:
            name += f":alpha={spell(attack.alpha)}"
        whole = replace(attack, climb_on=False, bf16=False)
        return replace(whole, name=name, steps=steps, restarts=restarts)

    def sharp(self) -> Tensor | None:
        """The images [N] that withstand every attack of the evaluation that sees gradients.

        None unless one of them is long and climbs more than the cross entropy, which goes flat
        where a margin still rises.
        """
        left, long = self.right.clone(), False
        for place, name in enumerate(self.found.attacks, 1):
            attack = build_attack(name)
            if isinstance(attack, Square | AutoAttack):
                continue
            left &= self.found.correct[:, place]
            loss = getattr(attack, "loss", "boundary")
            flat = loss in ("ce", "cross-entropy") or isinstance(attack, FastCodePGD)
            long |= not flat and getattr(attack, "steps", 0) >= LONG
        return left if long else None


def thirds(attack: Attack, ball: Ball, classes: int) -> int:
    """The most that an attack costs an image, in thirds of a pass."""
    others = max(classes - 1, 1)
    if isinstance(attack, AutoAttack):
        return 1 + sum(thirds(part, ball, classes) for part in autoattack.STANDARD)
    if isinstance(attack, APGD):
        targets = min(attack.targets_in(ball), others) if attack.loss == "dlr-t" else 1
        # in L1 it looks once more at the start of each of three stages
        looks = attack.steps + (3 if ball.norm == "l1" else 1)
        return 1 + attack.restarts_in(ball) * targets * 2 * looks
    if isinstance(attack, FAB):  # a step back over the boundary is looked at again
        return 1 + min(attack.targets, others) * 2 * (2 * attack.steps + 2)
    if isinstance(attack, Square):
        return attack.queries
    steps, restarts = getattr(attack, "steps", 0), getattr(attack, "restarts", 1)
    # a search in bf16 may have to ask again after every stage
    again = -(-steps // STEPS_BETWEEN_DROPS) if getattr(attack, "bf16", False) else 0
    return int(restarts * (2 * steps + 1 + again) + 1)
