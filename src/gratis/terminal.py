"""What the command line shows: the table of results and the progress of long work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gratis.names import spell
from gratis.run import Run

if TYPE_CHECKING:
    from gratis.assess import Progress


def table(runs: list[Run]) -> None:
    """One row for each run and evaluation."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = Table(box=box.SIMPLE_HEAD)
    for column in (
        "method",
        "attack",
        "images",
        "clean %",
        "robust %",
        "95 %",
        "passes",
        "seconds",
    ):
        numeric = column not in ("method", "attack")
        rows.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    notes = set()
    for run in runs:
        results = run.results or {"evaluations": []}
        for entry in results["evaluations"]:
            threat, robust = entry["threat"], entry["robust"]
            low, high = robust["ci95"]
            rows.add_row(
                results["method"],
                f"{entry['attack']} {threat['norm']} {spell(threat['eps'])}",
                str(entry["images"]["count"]),
                f"{entry['clean']['accuracy']:.1%}".rstrip("%"),
                f"{robust['accuracy']:.1%}".rstrip("%"),
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{results['budget']['metered_passes']:.1f}",
                f"{results['budget']['seconds']:.0f}",
            )
        if note := results.get("data", {}).get("note"):
            notes.add(note)
    console = Console()
    console.print(rows)
    console.print(
        "passes: forward, input gradient and weight gradient of one image, a third each, per "
        "training image; seconds: training alone; 95 %: interval of robust accuracy; "
        "checkpoint `last` unless a run's results.json says otherwise",
        style="dim",
    )
    for note in sorted(notes):
        console.print(f"note: {note}")


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
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        shown: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int, note: str) -> None:
            if stage not in shown or total != bars.tasks[shown[stage]].total:
                shown[stage] = bars.add_task(stage, total=total, note=note)
                if not console.is_terminal:
                    what = "updates" if stage == "train" else "images"
                    console.print(f"{label}: {stage} {total} {what} {note}", highlight=False)
            bars.update(shown[stage], completed=done, note=note)

        yield progress
