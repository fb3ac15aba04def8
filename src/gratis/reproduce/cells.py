"""Cells of a table that are measured on images from another distribution. Never imports torch."""

from gratis.origins import of_own_images
from gratis.recipe import Plain
from gratis.report.detection import protocol as of_boxes
from gratis.report.shifts import protocol
from gratis.reproduce.columns import NOT_YET, SHIFTS, Column
from gratis.reproduce.papers import Scale
from gratis.run import Record


def asked_of_shift(results: Record, checkpoint: str, limit: int | None) -> list[Record]:
    """The entries of shifts that are of a checkpoint and of all that a table asks for: of no part
    of the shift but its first `limit` images a cell.
    """
    limited = [] if limit is None else [f"at most {limit} images a cell"]
    return [
        entry
        for entry in of_own_images(results, results.get("shifts", []))
        if entry["checkpoint"] == checkpoint and entry.get("partial", []) == limited
    ]


def shifted(column: Column, scale: Scale, recipe: Plain, results: Record, facts: Record) -> Record:
    """On images from another distribution: percent as the paper prints them, and which ones."""
    if scale == "smoke" and column.measure == "coco-c":
        return {"why": f"{NOT_YET}: at this scale 75 corruptions would take longer than the rest"}
    if scale == "smoke":
        return {"why": f"{NOT_YET}: at this scale images are grey and 8 pixels wide"}
    wanted = recipe.get("evaluation") or {}
    found = asked_of_shift(results, wanted.get("checkpoint", "last"), wanted.get("limit"))
    entries = {entry["shift"]: entry for entry in found}
    for name in SHIFTS[column.measure]:
        if name in entries:
            return _found(entries[name])
        if reason := facts.get("shifts", {}).get(name):
            return {"why": reason}
    if column.missing:
        return {"why": f"{NOT_YET}: {column.missing}"}
    return {"why": "not looked at yet" if results else "not run"}


def _found(entry: Record) -> Record:
    if "mpc" in entry:
        said = f"mean of {entry['mpc_cells']} cells of {of_boxes(entry)}"
        return {"measured": 100 * entry["mpc"], "images": entry["images_per_cell"], "of": said}
    of = {"of": protocol(entry), "images": entry["images_per_cell"]}
    if "accuracy" in entry:
        share = entry["accuracy"]
        interval = [100 * bound for bound in share["ci95"]]
        return {"measured": 100 * share["accuracy"], "ci95": interval, **of}
    key = "mean_error_19" if "mean_error_19" in entry else "mean_error"
    of["of"] = f"mean over {19 if key == 'mean_error_19' else entry['mean_of']} of {of['of']}"
    return {"measured": 100 * entry[key], **of}
