"""A run's phases, out of its recipe and its log: what each sees, and what it took."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gratis.figures import Span
from gratis.report.values import NOTHING, passes
from gratis.run import Record

if TYPE_CHECKING:
    from gratis.report.runs import RunView


@dataclass
class Phase:
    """image_size and stored are None where the data's own size is used, images in memory.

    begun: what the log says of its first moment, None before.  steps: its updates so far.
    """

    number: int
    image_size: int | None
    stored: int | str | None
    batch_size: int | None
    begun: Record | None = None
    steps: list[Record] = field(default_factory=list)

    def reach(self, key: str) -> tuple[float, float]:
        """`key` of the log (epoch, spent_passes, seconds) where the phase begins and ends."""
        assert self.begun is not None
        return self.begun[key], (self.steps or [self.begun])[-1][key]

    @property
    def rates(self) -> tuple[float, float, float]:
        """The learning rates of its first and its last update, and the highest of any."""
        rates = [step["learning_rate"] for step in self.steps]
        return rates[0], rates[-1], max(rates)

    @property
    def size(self) -> str:
        return NOTHING if self.image_size is None else f"{self.image_size} px"

    @property
    def source(self) -> str:
        """Where the images come from."""
        if self.stored is None:
            return "memory"
        return "files" if self.stored == "files" else f"stored {self.stored} px"


def phases(recipe: Record, log: Sequence[Record]) -> list[Phase]:
    """All phases of a recipe in order, begun or not; none where the log tells of none."""
    keys, data = ("image_size", "stored", "batch_size"), recipe.get("data", {})
    found = [
        Phase(number, *(data.get(k) if given.get(k) is None else given[k] for k in keys))
        for number, given in enumerate(recipe.get("phases") or [], 1)
    ]
    now: Phase | None = None
    for record in log:
        if record["kind"] == "phase":
            now = found[record["phase"] - 1]
            now.begun, now.steps = record, []  # a run that went on here says so once more
        elif record["kind"] == "step" and now is not None:
            now.steps.append(record)
    return found if now is not None else []


def spans(views: Sequence["RunView"], *, explained: bool = False) -> list[Span]:
    """Where the runs' phases are, to be marked in curves: named if they are the same for all runs
    that have any, else each run's own in its colour.

    explained: with what each phase sees, where there is room.
    """
    each = [[_span(phase, explained) for phase in _begun(view)] for view in views]
    own = [(view, found) for view, found in zip(views, each, strict=True) if found]
    if len({_alike(found) for _, found in own}) == 1:
        return own[0][1]
    return [replace(span, names=(), series=view.series) for view, found in own for span in found]


def in_words(views: Sequence["RunView"]) -> str:
    """The same for readers who do not see the curves; nothing where no run has phases."""
    said = []
    for view in views:
        begun = ", ".join(
            f"phase {phase.number} ({phase.size}, batch {phase.batch_size}, {phase.source}) "
            f"from {passes(phase.reach('spent_passes')[0])} passes on"
            for phase in _begun(view)
        )
        said += [f" {view.label}: {begun}."] if begun else []
    return "".join(said)


def _begun(view: "RunView") -> list[Phase]:
    return [phase for phase in view.phases if phase.begun is not None]


def _span(phase: Phase, explained: bool) -> Span:
    number = str(phase.number)
    seen = [phase.size] * (phase.image_size is not None) + [f"batch {phase.batch_size}"]
    seen += [phase.source] * (phase.stored is not None)
    whole = "\n".join([f"phase {number}", *seen])
    names = (whole,) * explained + (f"phase {number}", number)
    return Span(*phase.reach("spent_passes"), names)


def _alike(found: Sequence[Span]) -> tuple[tuple[float, tuple[str, ...]], ...]:
    return tuple((round(span.begin, 2), span.names) for span in found)
