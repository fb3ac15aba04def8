"""The summary of a verification on the terminal."""

from typing import TYPE_CHECKING

from gratis.names import spell
from gratis.run import Record
from gratis.verify.solver import INSTALL

if TYPE_CHECKING:
    from rich.console import Console

WHAT = {
    "clean": "classified wrongly",
    "attack": "first attack",
    "crown": "CROWN bounds",
    "alpha": "alpha-CROWN",
    "second attack": "second attack",
    "sharpen": "units' own slopes",
    "branch": "branch and bound",
    "lp": "linear programs",
    "milp": "integer programs (SCIP)",
}


def show(summary: Record) -> None:
    """Verdicts by rung, then verified accuracy as an interval."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    threat, images = summary["threat"], summary["images"]
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=f"verified at {threat['norm']} {spell(threat['eps'])}, {images['count']} "
        f"{images['split']} images, checkpoint {summary['checkpoint']}",
        title_justify="left",
        title_style="bold",
    )
    shown.add_column("rung")
    verdicts = list(summary["counts"])
    for column in (*verdicts, "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    for rung, found in summary["rungs"].items():
        seconds = summary["seconds"]["by_rung"][rung]
        if found or seconds:
            cells = (str(found.get(verdict, "")) for verdict in verdicts)
            shown.add_row(WHAT[rung], *cells, f"{seconds:.1f}")
    shown.add_section()
    total = sum(summary["seconds"]["by_rung"].values())
    shown.add_row("all", *(str(n) for n in summary["counts"].values()), f"{total:.1f}")
    console.print(shown)
    verified = summary["verified"]
    low, high = (100 * verified[end]["accuracy"] for end in ("low", "high"))
    between = f"{low:.2f}" if low == high else f"between {low:.2f} and {high:.2f}"
    ends = "-".join(f"{100 * end:.1f}" for end in verified["ci95"])
    console.print(
        f"verified accuracy: {between} % of these images; 95 % interval {ends} %", highlight=False
    )
    missing = [name for name, there in summary["solvers"].items() if not there]
    if missing:
        console.print(
            f"not installed, so not tried: {', '.join(missing)} ({INSTALL})",
            highlight=False,
            markup=False,
        )
    if "cross_check" in summary:
        _show_cross_check(console, summary["cross_check"])


def _show_cross_check(console: "Console", check: Record) -> None:
    """How many images SCIP agreed on, and each one that it did not."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in check["counts"].items())
    console.print(f"cross-check by SCIP: {counts}", highlight=False)
    for image in check["images"]:
        if image["outcome"] != "agreed":
            console.print(
                f"  image {image['index']}, {image['verdict']} by {WHAT[image['rung']]}: "
                f"{image['outcome']}; {image['targets_proved']} of {image['targets']} classes "
                f"excluded in {image['seconds']:.0f} s",
                highlight=False,
            )
