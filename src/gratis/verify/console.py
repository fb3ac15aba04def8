"""The summary of a verification on the terminal."""

from gratis.names import spell
from gratis.run import Record

WHAT = {
    "clean": "classified wrongly",
    "attack": "first attack",
    "crown": "CROWN bounds",
    "alpha": "alpha-CROWN",
    "second attack": "second attack",
    "sharpen": "units' own slopes",
    "branch": "branch and bound",
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
