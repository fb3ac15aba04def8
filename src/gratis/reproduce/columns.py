"""The columns of a paper's table: what each is measured by. Never imports torch."""

from dataclasses import dataclass

from gratis.names import parse_attack

PREDICTED = ("predicted-hours", "predicted-speed-up")
"""By gratis.scaling, of a row's layout: nothing is run for them."""

PHASE_MINUTES = tuple(f"phase-{number}-epoch-minutes" for number in (1, 2, 3))
"""Training time an epoch in each of a run's phases; a run without any has one."""

PLAIN_MEASURES = (
    *("clean", "map"),
    "epochs",
    "minutes",
    "epoch-seconds",
    "times-first",
    *PHASE_MINUTES,
    *PREDICTED,
)
"""Of results.json: clean accuracy; mAP; epochs as papers count; training time, alone and an
epoch; passes as papers count them, over those of the table's first row. And PREDICTED.
"""

NOT_YET = "not measured here"

SHIFTS = {
    "corruption-error": ("imagenet-c", "corruptions"),
    "imagenet-r": ("imagenet-r",),
    "stylized": ("stylized",),
    "coco-c": ("coco-c",),
}
"""Measures on images from another distribution: the first of these shifts whose files are given;
corruptions and coco-c need none.
"""

MADE = {"corruptions", "coco-c"}
"""The shifts whose images are made here where no files are given."""


@dataclass(frozen=True)
class Column:
    """One printed column.

    measure: one of PLAIN_MEASURES or of SHIFTS, an attack's name, or extra:KEY of what is done
    after training.
    cpu: the attack at that scale, where the measure is of the paper's data.
    eps: of the attack; the row's own unless given.  missing: why `measure` is not measured here;
    it stands until an attack of that name does, or the files of a shift are given.
    """

    name: str
    title: str = ""
    measure: str = "clean"
    eps: float | None = None
    missing: str = ""
    cpu: str = ""

    def __post_init__(self) -> None:
        if not (self.measured or self.missing):
            raise ValueError(
                f"column {self.name}: no measure {self.measure!r}; there are "
                f"{', '.join((*PLAIN_MEASURES, *SHIFTS))}, attacks such as pgd-50-10, extra:KEY; "
                "or say in `missing` why nothing here measures it"
            )
        if self.cpu:
            parse_attack(self.cpu)  # what is no attack is answered before any run
            if self.attack is None:
                raise ValueError(
                    f"column {self.name}: cpu says which attack is run at that scale, but the "
                    f"measure {self.measure!r} is no attack; leave cpu out"
                )

    @property
    def attack(self) -> str | None:
        """The attack to run for this column, if it is one and there is such an attack."""
        try:
            return parse_attack(self.measure).text
        except ValueError:
            return None

    @property
    def measured(self) -> bool:
        plain = self.measure in PLAIN_MEASURES or self.measure.startswith("extra:")
        plain = plain or bool(MADE & {*SHIFTS.get(self.measure, ())})
        return plain or self.attack is not None

    @property
    def is_accuracy(self) -> bool:
        """Whether it holds percentages."""
        return self.measure not in PLAIN_MEASURES[2:] and not self.measure.endswith("_rise")
