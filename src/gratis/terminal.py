"""What the command line shows: the table of results and the progress of long work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gratis.names import spell
from gratis.origins import fingerprint, other_images
from gratis.run import Record, Run

NOTHING = "–"  # noqa: RUF001

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gratis.assess import Progress


def table(runs: list[Run]) -> None:
    """One table for each protocol that the runs were evaluated under, one row for each run; then
    the worst of several attacks and what the masking checks found.
    """
    from rich.console import Console

    console = Console()
    protocols: dict[tuple[str, str], list[tuple[Record, Record]]] = {}
    notes: dict[str, None] = {}
    for run in runs:
        results = run.results or {"evaluations": []}
        for entry in results["evaluations"]:
            # runs on other images stand in a table of their own
            key = _protocol(entry), fingerprint(results, entry)
            protocols.setdefault(key, []).append((results, entry))
        if note := results.get("data", {}).get("note"):
            notes[note] = None
    for (protocol, _), rows in protocols.items():
        console.print(_rows(", ".join([protocol, *other_images(*rows[0])]), rows))
    for run in runs:
        if (found := (run.results or {}).get("detection")) is not None:
            console.print(_boxes(run.results or {}, found))
    for run in runs:
        for line in _about(run, named=len(runs) > 1):
            console.print(line, highlight=False, soft_wrap=True)
    if protocols:
        console.print(
            "robust: with its 95 % interval over the test images; "
            "an upper bound on true robustness",
            style="dim",
            highlight=False,
        )
    console.print(
        "passes: forward, input gradient and weight gradient of one image, a third each, spent "
        "per training image; seconds: training alone",
        style="dim",
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {note}", highlight=False)


def _rows(protocol: str, rows: list[tuple[Record, Record]]) -> "Table":
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, title=protocol, title_justify="left", title_style="bold")
    shown.add_column("method")
    for column in ("clean %", "robust %", "95 %", "passes", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    for results, entry in rows:
        low, high = entry["robust"]["ci95"]
        shown.add_row(
            results["method"],
            f"{100 * entry['clean']['accuracy']:.1f}",
            f"{100 * entry['robust']['accuracy']:.1f}",
            f"{100 * low:.1f}-{100 * high:.1f}",
            *_spent(results),
        )
    return shown


def _spent(results: Record) -> tuple[str, str]:
    """Passes and seconds of training; of a model trained elsewhere neither is known."""
    if "given" in results:
        return NOTHING, NOTHING
    budget = results["budget"]
    return f"{budget['metered_passes']:.1f}", f"{budget['seconds']:.0f}"


def _boxes(results: Record, found: Record) -> "Table":
    """What a detector found, in the figures that papers print."""
    from rich import box
    from rich.table import Table

    from gratis.report.detection import FIGURES, notes, points, protocol

    shown = Table(
        box=box.SIMPLE_HEAD,
        title=f"mean average precision: {protocol(found)}",
        title_justify="left",
        title_style="bold",
        caption="\n".join(notes(found)) or None,
        caption_justify="left",
    )
    shown.add_column("method")
    for column in (*FIGURES.values(), "passes", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_row(results["method"], *(points(found[key]) for key in FIGURES), *_spent(results))
    return shown


def _about(run: Run, named: bool) -> "Iterator[str]":
    """What stands beside the tables: the worst of several attacks, signs of masking."""
    results = run.results or {}
    of = f"{run.path.name}, " if named else ""
    for union in results.get("unions", []):
        robust = 100 * union["robust"]["accuracy"]
        worst = f"{of}worst of {', '.join(union['attacks'])}"
        at = ", ".join([_measured(union), *other_images(results, union)])
        yield f"{worst} at {at}: robust {robust:.1f} %"
    for checks in results.get("checks", []):
        verdicts = [finding["verdict"] for finding in checks["findings"]]
        warned = [f["id"] for f in checks["findings"] if f["verdict"] == "warn"]
        made = f"{len(verdicts) - verdicts.count('not run')} of {len(verdicts)} made"
        warnings = f"; warnings: {', '.join(warned)}" if warned else ""
        about = f"{of}masking checks of {', '.join(checks.get('judged', ['attacks']))}"
        at = ", ".join([_measured(checks), *other_images(results, checks)])
        yield f"{about} at {at} ({made}): {checks['verdict']}{warnings}"


def _protocol(entry: Record) -> str:
    return f"{entry['attack']} at {_measured(entry)}"


def _measured(entry: Record) -> str:
    threat, images = entry["threat"], entry["images"]
    return (
        f"{threat['norm']} {spell(threat['eps'])}, {images['count']} {images['split']} images, "
        f"checkpoint {entry['checkpoint']}"
    )


def shifts(run: Run, names: list[str]) -> None:
    """Of each of these shifts a table of errors, if it has corruptions, and its figures."""
    from rich.console import Console

    from gratis.report.detection import is_coco_c
    from gratis.report.shifts import facts, notes, protocol

    console = Console()
    for entry in (run.results or {}).get("shifts", []):
        if entry["shift"] not in names:
            continue
        if is_coco_c(entry):
            _coco_c(console, entry)
            continue
        console.print(protocol(entry), style="bold", highlight=False, markup=False, soft_wrap=True)
        if "cells" in entry:
            console.print(_errors(entry))
        for line in (*(f"{name}: {figure}" for name, figure in facts(entry)), *notes(entry)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _coco_c(console: "Console", entry: Record) -> None:
    """Mean average precision by corruption and severity, and its means."""
    from rich import box
    from rich.table import Table

    from gratis.report.detection import facts, notes, points, protocol, table

    found = table(entry)
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("mAP at severity")
    for column in (*found["severities"], "mean"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in found["rows"]:
        shown.add_row(row["name"], *map(points, [*row["cells"], row["mean"]]))
    console.print(protocol(entry), style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(shown)
    for line in (*(f"{name}: {figure}" for name, figure in facts(entry)), *notes(entry)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _errors(entry: Record) -> "Table":
    """Errors in percent by corruption and severity."""
    from rich import box
    from rich.table import Table

    from gratis.report.shifts import table

    found = table(entry)
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("error % at severity")
    for column in (*found["severities"], "mean", *(["CE"] if found["normalised"] else [])):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in found["rows"]:
        cells = [f"{100 * cell['error']:.1f}" if cell else "" for cell in row["cells"]]
        ce = [f"{100 * row['ce']:.1f}" if row["ce"] is not None else ""]
        shown.add_row(
            row["name"], *cells, f"{100 * row['mean']:.1f}", *(ce if found["normalised"] else [])
        )
    return shown


@contextmanager
def bar(label: str) -> "Iterator[Progress]":
    """A progress bar with the time left, on a terminal; a line a stage elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[label]:10} {task.description:8}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    shown: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        bars.start()  # no earlier: processes with nothing to show share the terminal
        if stage not in shown or total != bars.tasks[shown[stage]].total:
            shown[stage] = bars.add_task(stage, total=total, note=note, label=label)
            if not console.is_terminal:
                what = {"train": f"{total} updates ", "check": ""}.get(stage, f"{total} images ")
                console.print(f"{label}: {stage} {what}{note}", highlight=False, markup=False)
        bars.update(shown[stage], completed=done, note=note)

    try:
        yield progress
    finally:
        bars.stop()
