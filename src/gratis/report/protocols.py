"""The table of results: what was measured in one way stands together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from gratis.report.runs import RunView, notes
from gratis.run import Record


@dataclass
class Protocol:
    """One way of measuring, and every run that was measured in that way."""

    evaluation: Record
    data: Record
    rows: list[tuple[RunView, Record]] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        return notes([view for view, _ in self.rows])


def protocols(views: Sequence[RunView]) -> list[Protocol]:
    """The evaluations of all runs, those that compare together, in order of appearance;
    then the worst cases over several attacks.
    """
    found: dict[str, Protocol] = {}
    finished = [(view, view.results) for view in views if view.results is not None]
    rows = [(view, results, entry) for view, results in finished for entry in view.evaluations]
    rows += [(view, results, entry) for view, results in finished for entry in view.unions]
    for view, results, entry in rows:
        protocol = found.setdefault(view.question(entry), Protocol(entry, results["data"]))
        protocol.rows.append((view, entry))
    return list(found.values())


@dataclass
class Verified:
    """One exact question, and of every run that was asked it the summary, with the lowest robust
    accuracy that an attack measured at the same radius, where one did.
    """

    summary: Record
    rows: list[tuple[RunView, Record, Record | None]] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        return notes([view for view, *_ in self.rows])


def verifications(views: Sequence[RunView]) -> list[Verified]:
    found: dict[str, Verified] = {}
    for view in views:
        for summary in view.verified:
            asked = [summary[key] for key in ("threat", "checkpoint", "images", "data", "settings")]
            key = json.dumps(asked, sort_keys=True)
            row = (view, summary, _upper_bound(view, summary))
            found.setdefault(key, Verified(summary)).rows.append(row)
    return list(found.values())


def _upper_bound(view: RunView, summary: Record) -> Record | None:
    """The strongest attack on the same checkpoint within the same ball, on images of the same test
    split; on the same ones where there is one.
    """
    same = [
        entry
        for entry in view.evaluations + view.unions
        if all(entry.get(key) == summary.get(key) for key in ("threat", "checkpoint", "update"))
        and view.fingerprint(entry) == summary["data"]["fingerprint"]
    ]
    on_these = [entry for entry in same if entry["images"] == summary["images"]]
    return min(on_these or same, key=lambda entry: float(entry["robust"]["accuracy"]), default=None)
