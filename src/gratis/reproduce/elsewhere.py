"""What columns about images from another distribution need of a trained row."""

import json
from collections.abc import Mapping
from pathlib import Path

from gratis.assess import Progress
from gratis.data.corruptions import COMMON, EXTRA
from gratis.data.shifted import Asked
from gratis.recipe import from_plain
from gratis.reproduce.cells import asked_of_shift
from gratis.reproduce.columns import MADE, SHIFTS
from gratis.reproduce.outcome import FACTS
from gratis.reproduce.papers import Table
from gratis.run import Record, Run
from gratis.shifts import shift_run

Places = Mapping[str, Path | None]
"""Where the user has the files of a shift, by its name."""


def asked(table: Table, places: Places, limit: int | None) -> list[Asked]:
    """What the columns of a table are measured on: files that are given; corruptions are made
    where no ImageNet-C is.
    """
    found = []
    for column in table.columns:
        for name in SHIFTS.get(column.measure, ()):
            if places.get(name) is not None or name in MADE:
                # Mei 2022 averages all 19 corruptions of ImageNet-C; mPC is of the 15
                count = len(COMMON) if name == "coco-c" else len(COMMON + EXTRA)
                found.append(Asked(name, places.get(name), count, limit=limit))
                break
    return found


def look(table: Table, run: Run, places: Places, progress: Progress) -> None:
    """Evaluate a finished row on what was not looked at yet; why it cannot be stays in FACTS."""
    recipe = from_plain(run.recipe)
    limit = recipe.evaluation.limit
    known = asked_of_shift(run.results or {}, recipe.evaluation.checkpoint, limit)
    reasons = {}
    for one in asked(table, places, limit):
        if any(_answers(entry, one) for entry in known):
            continue
        try:
            with run.locked():
                shift_run(run, [one], progress=progress)
        except (ValueError, OSError, ImportError) as error:
            reasons[one.name] = " ".join(str(error).split())
    facts = json.loads((run.path / FACTS).read_text("utf-8"))
    if facts.get("shifts", {}) != reasons:
        facts = json.dumps({**facts, "shifts": reasons}, indent=2) + "\n"
        (run.path / FACTS).write_text(facts, "utf-8")


def _answers(entry: Record, one: Asked) -> bool:
    """Whether an entry is of the shift, and of all corruptions, that the table asks for."""
    corruptions = {corruption for corruption, _ in one.grid}
    return entry["shift"] == one.name and corruptions <= set(entry.get("corruptions", corruptions))
