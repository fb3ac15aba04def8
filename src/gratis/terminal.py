"""What the command line shows: the table of results and the progress of long work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gratis.names import spell
from gratis.run import Record, Run

if TYPE_CHECKING:
    from rich.table import Table

    from gratis.assess import Progress


def table(runs: list[Run]) -> None:
    """One table for each protocol that the runs were evaluated under, one row for each run; then
    the worst of several attacks and what the masking checks found.
    """
    from rich.console import Console

    console = Console()
    protocols: dict[str, list[tuple[Record, Record]]] = {}
    notes: dict[str, None] = {}
    for run in runs:
        results = run.results or {"evaluations": []}
        for entry in results["evaluations"]:
            protocols.setdefault(_protocol(entry), []).append((results, entry))
        if note := results.get("data", {}).get("note"):
            notes[note] = None
    for protocol, rows in protocols.items():
        console.print(_rows(protocol, rows))
    for run in runs:
        for line in _about(run, named=len(runs) > 1):
            console.print(line, highlight=False, soft_wrap=True)
    console.print(
        "robust: with its 95 % interval over the test images; an upper bound on true robustness\n"
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
            f"{results['budget']['metered_passes']:.1f}",
            f"{results['budget']['seconds']:.0f}",
        )
    return shown


def _about(run: Run, named: bool) -> "Iterator[str]":
    """What stands beside the tables: the worst of several attacks, signs of masking."""
    results = run.results or {}
    of = f"{run.path.name}, " if named else ""
    for union in results.get("unions", []):
        robust = 100 * union["robust"]["accuracy"]
        worst = f"{of}worst of {', '.join(union['attacks'])}"
        yield f"{worst} at {_measured(union)}: robust {robust:.1f} %"
    for checks in results.get("checks", []):
        verdicts = [finding["verdict"] for finding in checks["findings"]]
        warned = [f["id"] for f in checks["findings"] if f["verdict"] == "warn"]
        made = f"{len(verdicts) - verdicts.count('not run')} of {len(verdicts)} made"
        warnings = f"; warnings: {', '.join(warned)}" if warned else ""
        yield (f"{of}masking checks at {_measured(checks)} ({made}): {checks['verdict']}{warnings}")


def _protocol(entry: Record) -> str:
    return f"{entry['attack']} at {_measured(entry)}"


def _measured(entry: Record) -> str:
    threat, images = entry["threat"], entry["images"]
    return (
        f"{threat['norm']} {spell(threat['eps'])}, {images['count']} {images['split']} images, "
        f"checkpoint {entry['checkpoint']}"
    )


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
        TextColumn(f"{label:10} {{task.description:8}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    shown: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        bars.start()  # no earlier: processes with nothing to show share the terminal
        if stage not in shown or total != bars.tasks[shown[stage]].total:
            shown[stage] = bars.add_task(stage, total=total, note=note)
            if not console.is_terminal:
                what = {"train": f"{total} updates ", "check": ""}.get(stage, f"{total} images ")
                console.print(f"{label}: {stage} {what}{note}", highlight=False)
        bars.update(shown[stage], completed=done, note=note)

    try:
        yield progress
    finally:
        bars.stop()
