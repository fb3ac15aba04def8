"""A table on the terminal: paper beside measured."""

from gratis.reproduce.page import lines, measured, printed, remarks
from gratis.run import Record

WIDTH = 180
"""Of a table that goes into a file: no terminal's."""


def show(record: Record) -> None:
    """The table and what must be said about it, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=f"{record['table']}: {record['title']} ({record['paper']})",
        title_justify="left",
        title_style="bold",
    )
    shown.add_column("row")
    for column in record["columns"]:
        unit = " %" if column["percent"] else ""
        shown.add_column(f"{column['title']}{unit}\npaper / here", justify="right")
    shown.add_column("epochs\npaper / here", justify="right")
    shown.add_column("passes\nours / papers'", justify="right")
    shown.add_column("conditions")
    for row, texts in zip(record["rows"], lines(record), strict=True):
        cells = [row["cells"][column["name"]] for column in record["columns"]]
        shown.add_row(
            row["name"],
            *(
                f"{printed(cell, column['percent'])} / "
                f"{measured(cell, column['percent'], row, interval=False)}"
                for cell, column in zip(cells, record["columns"], strict=True)
            ),
            f"{texts[-5]} / {texts[-4]}",
            f"{texts[-3]} / {texts[-2]}",
            texts[-1],
        )
    console.print(shown)
    console.print("- with 95 % intervals in the files", style="dim", highlight=False)
    for remark in remarks(record):
        console.print(f"- {remark}", highlight=False, markup=False)
