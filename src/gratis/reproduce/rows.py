"""Training and evaluating a table's rows one after the other; what is finished stays."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gratis import train
from gratis.asked import question
from gratis.assess import Progress, evaluate_run
from gratis.budget import phase_ends
from gratis.launched import rank_and_world
from gratis.recipe import Recipe, from_plain
from gratis.reproduce.after import EXTRAS
from gratis.reproduce.elsewhere import Places, look
from gratis.reproduce.outcome import FACTS, outcome
from gratis.reproduce.page import write
from gratis.reproduce.papers import Row, Scale, Table
from gratis.reproduce.settings import values
from gratis.reproduce.shared import same_training, take_over
from gratis.run import Record, Run, WatchedRun
from gratis.sections import Data
from gratis.training_data import count

Status = Literal["done", "not run", "no data", "failed"]
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Standing:
    """How a row stands, and why where it is not done."""

    status: Status
    reason: str = ""


def reproduce(
    table: Table,
    scale: Scale,
    folder: Path,
    *,
    rows: tuple[Row, ...],
    given: tuple[str, ...] = (),
    places: Places | None = None,
    bar: Bar,
) -> tuple[Record, bool]:
    """Make `rows` of a table in folder/ROW and write the table there after each of them.

    given: settings on top of every row's.  places: where files of shifts are, by their names.
    bar: shows the progress of a row by its name.
    Returns the table (see `outcome`) and whether all of `rows` are done. A row that cannot be
    made says why, and the next one is begun. Of torchrun's processes all train and the first
    alone writes; the others return no table. Raises ValueError for settings that fit no recipe.
    """
    recipes = {row.name: from_plain(values(table, row, scale, given)) for row in rows}
    for recipe in recipes.values():
        recipe.check_method()  # a wrong method is answered before the first row is trained
    standings = {row.name: _before(table, row, scale, folder, given) for row in table.rows}
    shelf = Shelf()
    leads = rank_and_world()[0] == 0
    for row in rows:
        if standings[row.name].status != "done":
            out = folder / row.name
            standings[row.name] = _make(table, scale, recipes[row.name], out, shelf, bar)
            if scale != "smoke" and leads:  # there it would take longer than the row
                _written(table, scale, folder, standings, given)
    if scale != "smoke" and leads:  # at the end: others would wait for it to train the next row
        for row in rows:
            if standings[row.name].status == "done":
                with bar(row.name) as progress:
                    look(table, Run.open(folder / row.name), places or {}, progress)
    record = _written(table, scale, folder, standings, given) if leads else {}
    return record, all(standings[row.name].status == "done" for row in rows)


def _written(
    table: Table,
    scale: Scale,
    folder: Path,
    standings: dict[str, Standing],
    given: tuple[str, ...],
) -> Record:
    stands = {name: (standing.status, standing.reason) for name, standing in standings.items()}
    record = outcome(table, scale, folder, stands, given)
    write(table, record, folder)
    return record


def _before(table: Table, row: Row, scale: Scale, folder: Path, given: tuple[str, ...]) -> Standing:
    """How a row stands before anything is trained."""
    out = folder / row.name
    if not (out / FACTS).is_file():
        return Standing("not run")
    try:
        if finished(out, from_plain(values(table, row, scale, given))):
            return Standing("done")
    except ValueError:
        pass  # settings for other rows, which do not fit this one
    return Standing("not run", f"{out} holds a run of other settings")


def _make(
    table: Table, scale: Scale, recipe: Recipe, out: Path, shelf: "Shelf", bar: Bar
) -> Standing:
    try:
        counts = shelf.counts(recipe.data)
    except (ValueError, OSError) as error:
        return Standing("no data", " ".join(str(error).split()))
    try:
        take_over(out, recipe)
        with bar(out.name) as progress:
            same = same_training(out, recipe)
            run = train.run(same or recipe, out, resume=out.exists(), progress=progress)
            if isinstance(run, WatchedRun):
                return Standing("done")
            _catch_up(run, recipe, progress)
        extra = EXTRAS[table.extra](run, recipe, scale)
    except (ValueError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        return Standing("failed", " ".join(str(error).split()))
    facts = {
        "training_images": counts[0],
        "test_images": counts[1],
        "processes": _processes(out),
        "extra": extra,
        "phase_seconds": _phase_seconds(run, recipe),
    }
    (out / FACTS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return Standing("done")


def _phase_seconds(run: Run, recipe: Recipe) -> list[float | None]:
    """Training seconds of a data pass in each phase, or in the run if it has none; None for a
    phase that the run has no whole pass of.
    """
    ended = {round(r["epoch"]): r["seconds"] for r in run.log() if r["kind"] == "epoch"}
    ended[0] = 0.0
    passes = (run.results or {})["budget"]["data_passes"]
    begin, found = 0, []
    for end in phase_ends([phase.share for phase in recipe.phases] or [1.0], passes):
        last = max(epoch for epoch in ended if epoch <= end)
        seconds = ended[last] - ended[begin] if last > begin else 0.0
        found.append(seconds / (last - begin) if last > begin else None)
        begin = max(begin, last)
    return found


def _processes(out: Path) -> int:
    """How many trained the row in `out`: others may attack it once more when it is finished."""
    if (out / FACTS).is_file():
        return int(json.loads((out / FACTS).read_text("utf-8")).get("processes", 1))
    return rank_and_world()[1]


def finished(out: Path, recipe: Recipe) -> bool:
    """Whether `out` holds a finished run of this recipe, evaluated as it asks."""
    return (
        (out / FACTS).is_file()
        and same_training(out, recipe) is not None
        and question(recipe).answered_by(Run.open(out).results)
    )


def _catch_up(run: Run, recipe: Recipe, progress: Progress) -> None:
    """Attack a run as the recipe asks, where that was not done yet."""
    asked = question(recipe)
    update = run.load_checkpoint(asked.checkpoint)[0]["updates"]
    missing = [
        attack
        for attack in asked.attacks
        if not replace(asked, attacks=(attack,)).answered_by(run.results, update)
    ]
    if missing:
        with run.locked():
            evaluate_run(run, replace(asked, attacks=tuple(missing)), progress)


class Shelf:
    """Which data sets are there, each looked for once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None, int | None], tuple[int, int] | Exception] = {}

    def counts(self, data: Data) -> tuple[int, int]:
        """Images trained on and images there are to test on; ValueError or OSError says what is
        missing and how to get it.
        """
        key = (data.name, data.root, data.image_size)
        if key not in self._known:
            try:
                self._known[key] = (count(data, "train"), count(data, "test"))
            except (ValueError, OSError) as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, Exception):
            raise known
        return min(data.limit or known[0], known[0]), known[1]
