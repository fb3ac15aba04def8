"""A table as it stands: what the paper printed beside what came out. Never imports torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gratis.fits import fitting
from gratis.names import number, spell
from gratis.recipe import Plain
from gratis.report.detection import protocol as of_boxes
from gratis.reproduce.cells import shifted
from gratis.reproduce.columns import NOT_YET, PHASE_MINUTES, PREDICTED, SHIFTS, Column
from gratis.reproduce.papers import Row, Scale, Table
from gratis.reproduce.settings import JPEG, attack, values
from gratis.run import Record, Run

SCHEMA = 1
FACTS = "reproduced.json"
"""In a row's run directory: images trained on, images there are to test on, how many processes
trained, and extra numbers.
It is written last, so a directory with it is finished.
"""

SCALE_WORDS: dict[Scale, str] = {
    "smoke": "smoke: not a result",
    "cpu": "cpu",
    "paper": "paper",
}


def outcome(
    table: Table,
    scale: Scale,
    folder: Path,
    stands: Mapping[str, tuple[str, str]],
    given: tuple[str, ...] = (),
) -> Record:
    """The table as JSON types. stands: (status, reason) by row; folder: of the row directories.

    Accuracies are in percent, as printed; times in the unit that the column names.
    """
    rows = [
        _row(table, row, scale, folder / row.name, *stands[row.name], given) for row in table.rows
    ]
    first = rows[0]["budget"]
    for row, record in zip(table.rows, rows, strict=True):
        for column in table.columns:
            if column.measure == "times-first" and first and record["budget"]:
                measured = record["budget"]["papers_passes"] / first["papers_passes"]
                record["cells"][column.name] |= {"measured": measured}
                record["cells"][column.name].pop("why", None)
        assert record["name"] == row.name
    return {
        "schema": SCHEMA,
        "table": table.name,
        "title": table.title,
        "paper": table.paper,
        "kind": table.kind,
        "scale": scale,
        "settings": list(given),
        "notes": _notes(table, scale),
        "columns": [
            {
                "name": column.name,
                "title": column.title or column.name,
                "percent": column.is_accuracy,
                **({"attack": name} if (name := attack(column, scale)) else {}),
            }
            for column in table.columns
        ],
        "rows": rows,
    }


def _notes(table: Table, scale: Scale) -> list[str]:
    notes = list(table.notes)
    if table.stand_in:
        notes.append(f"The paper has {table.stand_in}: figures here do not compare with its own.")
    if table.scaling:
        notes.append(f"The model is given that {table.case(table.rows[0]).in_words()}.")
    if scale == "smoke":
        notes.insert(0, "smoke: not a result. It shows that every row's path exists, no more.")
    if scale == "cpu" and table.cpu.note:
        notes.insert(0, f"cpu: {table.cpu.note}.")
    return notes


def _row(
    table: Table,
    row: Row,
    scale: Scale,
    out: Path,
    status: str,
    reason: str,
    given: tuple[str, ...],
) -> Record:
    recipe, results, facts = values(table, row, scale, given), {}, {}
    note = row.note
    if status == "done":
        run = Run.open(out)
        if (trained_as := run.recipe["name"]) != recipe["name"]:
            note = "; ".join(filter(None, [note, f"trained once, as {trained_as}"]))
        recipe, results = run.recipe, run.results or {}
        guards = [entry for entry in run.log() if entry["kind"] == "guard"]
        if stops := [entry["update"] for entry in guards if entry["event"] == "stopped"]:
            note = "; ".join(filter(None, [note, f"stopped early, at update {stops[-1]}"]))
        facts = json.loads((out / FACTS).read_text("utf-8"))
    budget = results.get("budget", {})
    measured = {
        column.name: _predicted(table, row, column)
        if column.measure in PREDICTED
        else _measured(column, scale, recipe, results, facts)
        for column in table.columns
    }
    return {
        "name": row.name,
        "title": row.title or row.name,
        "status": status,
        **({"reason": reason} if reason else {}),
        **({"note": note} if note else {}),
        **({"source": row.source} if row.source else {}),
        "conditions": conditions(table, scale, recipe, facts),
        "directory": out.name,
        "epochs": {"printed": row.epochs, "here": epochs(budget, recipe) if budget else None},
        "budget": {
            key: budget[key] for key in ("metered_passes", "papers_passes", "updates", "seconds")
        }
        if budget
        else {},
        "cells": {
            column.name: {
                **({"printed": row.printed[column.name]} if column.name in row.printed else {}),
                **measured[column.name],
            }
            for column in table.columns
        },
    }


def conditions(table: Table, scale: Scale, recipe: Plain, facts: Record) -> str:
    """What every line must say: scale, data, images, net, stand-ins."""
    data = recipe["data"]
    name = str(data["name"])
    if name in ("folder", "coco"):
        name = Path(data["root"]).name if data.get("root") else name
    if data.get("test_split") == "train":
        name += " (judged on training images)"
    if name == JPEG:
        name += " (recompressed: not CIFAR-10's figures)"
    parts = [SCALE_WORDS[scale], name]
    if facts:
        limit = (recipe.get("evaluation") or {}).get("limit")
        test = min(limit or facts["test_images"], facts["test_images"])
        parts.append(f"{facts['training_images']:,} training and {test:,} test images")
        if (count := facts.get("processes", 1)) > 1:
            parts.append(f"{count} processes")
    model = recipe["model"]
    width = (model.get("options") or {}).get("width")
    parts.append(f"{model['name']}" + (f" of width {width}" if width else ""))
    if table.stand_in:
        parts.append(f"stand-in for {table.stand_in}")
    return "; ".join(parts)


def epochs(budget: Record, recipe: Plain) -> float:
    """Data passes, replays counted as epochs, as papers count them."""
    return float(budget["data_passes"]) * int(recipe["method"].get("replays", 1))


def _predicted(table: Table, row: Row, column: Column) -> Record:
    """The model's answer, which stands where a measured number would and says whose it is."""
    case = table.case(row)
    value = case.hours()[0] if column.measure == "predicted-hours" else case.speed_up()
    return {"measured": value, "model": "gratis.scaling"}


def _measured(
    column: Column, scale: Scale, recipe: Plain, results: Record, facts: Record
) -> Record:
    """{"measured": number, ...}, or {"why": words} for a cell without one."""
    if column.measure in SHIFTS:
        return shifted(column, scale, recipe, results, facts)
    if not column.measured:
        return {"why": f"{NOT_YET}: {column.missing}"}
    if not results:
        return {"why": "not run"}
    value: Any = None
    if column.measure.startswith("extra:"):
        key = column.measure.removeprefix("extra:")
        if key not in facts["extra"]:
            return {"why": f"no {key} among what is done after training"}
        value = facts["extra"][key]
        return {"measured": 100 * value if column.is_accuracy else value}
    if column.measure == "epochs":
        return {"measured": epochs(results["budget"], recipe)}
    if column.measure == "minutes":
        return {"measured": results["budget"]["seconds"] / 60, "device": results["device"]}
    if column.measure == "epoch-seconds":
        count = epochs(results["budget"], recipe)
        return {"measured": results["budget"]["seconds"] / count, "device": results["device"]}
    if column.measure in PHASE_MINUTES:
        return _phase(column, results, recipe, facts)
    if column.measure == "times-first":
        return {"why": "the first row is not done"}
    if column.measure == "map":
        return _precision(results, recipe)
    if column.measure == "clean":
        for entry in _asked(results, recipe):
            return _accuracy(entry, entry["clean"])
        return {"why": "the run was not evaluated on as many of its own test images"}
    norm, eps = _threat(recipe)
    eps = eps if column.eps is None else column.eps
    for entry in _asked(results, recipe):
        of = entry["attack"], entry["threat"]["norm"], entry["threat"]["eps"]
        if of == (attack(column, scale), norm, eps):
            return _accuracy(entry, entry["robust"])
    under = f"{attack(column, scale)} at {norm} {spell(eps)}"
    return {"why": f"the run was not evaluated under {under}"}


def _asked(results: Record, recipe: Plain, kind: str = "evaluations") -> list[Record]:
    """The evaluations, or another kind of entry, of the checkpoint and of as many images as the
    recipe asks for.
    """
    wanted = recipe.get("evaluation") or {}
    checkpoint, limit = wanted.get("checkpoint", "last"), wanted.get("limit")
    return fitting(results, kind, checkpoint=checkpoint, limit=limit)


def _phase(column: Column, results: Record, recipe: Plain, facts: Record) -> Record:
    """Minutes an epoch, as the paper counts epochs, of one phase."""
    place = PHASE_MINUTES.index(column.measure)
    known = facts.get("phase_seconds", [])
    if place >= len(known) or known[place] is None:
        return {"why": "no such phase"}
    replays = epochs(results["budget"], recipe) / results["budget"]["data_passes"]
    return {"measured": known[place] / 60 / replays, "device": results["device"]}


def _precision(results: Record, recipe: Plain) -> Record:
    """Mean average precision times 100, as papers print it."""
    for entry in _asked(results, recipe, "detection"):
        if entry["map"] is None:
            return {"why": "none of the images has a box"}
        of = of_boxes(entry)
        return {"measured": 100 * entry["map"], "images": entry["images"]["count"], "of": of}
    return {"why": "the run was not evaluated on as many of its own test images"}


def _threat(recipe: Plain) -> tuple[str, float]:
    """Norm and radius that the recipe's evaluation is of."""
    ball = recipe["method"]["ball"]
    ball = ball if isinstance(ball, Mapping) else {"eps": ball}
    norm = (recipe.get("evaluation") or {}).get("norm") or ball.get("norm", "linf")
    return str(norm), number(str(ball["eps"]))


def _accuracy(entry: Record, share: Record) -> Record:
    return {
        "measured": 100 * share["accuracy"],
        "ci95": [100 * bound for bound in share["ci95"]],
        "attack": entry["attack"],
        "threat": entry["threat"],
        "images": entry["images"]["count"],
    }
