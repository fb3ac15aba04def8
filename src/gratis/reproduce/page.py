"""A table's outcome as JSON, Markdown and one self-contained HTML page; never imports torch."""

import json
from pathlib import Path
from typing import Any

from gratis.report import environment
from gratis.reproduce import drawings
from gratis.reproduce.columns import NOT_YET
from gratis.reproduce.papers import Table
from gratis.run import Record

JSON, MARKDOWN, HTML = "table.json", "table.md", "table.html"
NOTHING = "–"  # noqa: RUF001


def write(table: Table, record: Record, folder: Path) -> list[Path]:
    """Write `record` (of `outcome`) into `folder` in three forms and return where."""
    folder.mkdir(parents=True, exist_ok=True)
    page = environment().get_template("reproduce.html.j2")
    html = page.render(
        record=record,
        headings=headings(record),
        lines=lines(record),
        remarks=remarks(record),
        figures=drawings.figures(table, record, folder),
        pictures=drawings.pictures(record, folder),
        surfaces_at=drawings.surfaces(record, folder),
    )
    contents = {
        JSON: json.dumps(record, indent=2) + "\n",
        MARKDOWN: markdown(record),
        HTML: html,
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]


def headings(record: Record) -> list[str]:
    """Of `lines`: the row, paper and here for each column, epochs, passes, conditions."""
    columns = []
    for column in record["columns"]:
        title = column["title"] + (" %" if column["percent"] else "")
        cut = record["scale"] == "smoke" and "attack" in column
        columns += [f"{title}: paper", f"here, {column['attack']}" if cut else "here"]
    return ["row", *columns, "epochs: paper", "here", "passes", "as papers count", "conditions"]


def lines(record: Record) -> list[list[str]]:
    """One line of texts for each row, with everything that a figure must be read with."""
    found = []
    for row in record["rows"]:
        budget = row["budget"]
        cells: list[str] = []
        for column in record["columns"]:
            cell = row["cells"][column["name"]]
            cells += [printed(cell, column["percent"]), measured(cell, column["percent"], row)]
        found.append(
            [
                row["title"],
                *cells,
                number(row["epochs"]["printed"]),
                number(row["epochs"]["here"]),
                number(budget.get("metered_passes")),
                number(budget.get("papers_passes")),
                row["conditions"],
            ]
        )
    return found


def printed(cell: Record, percent: bool) -> str:
    """What the paper printed; percentages to two decimals."""
    if "printed" not in cell:
        return NOTHING
    return f"{cell['printed']:.2f}" if percent else number(cell["printed"])


def measured(cell: Record, percent: bool, row: Record, *, interval: bool = True) -> str:
    """What came out, with its interval over the test images where it has one; or why nothing.

    interval: False for a narrow place, without interval and reasons.
    """
    if "measured" not in cell:
        if cell["why"].startswith(NOT_YET):
            return NOT_YET if interval else NOTHING
        return str(row["status"]) if row["status"] != "done" else NOTHING
    value = cell["measured"]
    text = f"{value:.1f}" if percent else number(value)
    if interval and "ci95" in cell:
        low, high = cell["ci95"]
        text += f" ({low:.1f} to {high:.1f})"
    return text


def number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}".rstrip("0").rstrip(".")


def remarks(record: Record) -> list[str]:
    """What must be said below the table: why cells are empty, what rows could not be made."""
    said: dict[str, None] = dict.fromkeys(record["notes"])
    for column in record["columns"]:
        for row in record["rows"]:
            why = row["cells"][column["name"]].get("why", "")
            if of := row["cells"][column["name"]].get("of"):
                said[f"{column['title']}, here: {of}."] = None
            if why.startswith(NOT_YET):
                said[f"{column['title']}: {why}."] = None
            elif why and row["status"] == "done":
                said[f"{row['title']}, {column['title']}: {why}."] = None
    for row in record["rows"]:
        for key in ("note", "reason"):
            if key in row:
                said[f"{row['title']}: {row[key]}."] = None
    return list(said)


def markdown(record: Record) -> str:
    """The table with everything around it that a reader needs."""
    head = headings(record)
    table = [
        f"# {record['table']}: {record['title']}",
        "",
        f"{record['paper']}. Scale: {record['rows'][0]['conditions'].split(';')[0]}.",
        *([f"Settings: `{' '.join(record['settings'])}`."] if record["settings"] else []),
        "",
        _line(head),
        _line(["---"] * len(head)),
        *(_line(line) for line in lines(record)),
        "",
        *(f"- {remark}" for remark in remarks(record)),
        "- Accuracies in percent, with 95 % Clopper-Pearson intervals over the test images.",
        "- Passes per training image: forward, input gradient and weight gradient are a third "
        "each; papers count a probe without weight gradient as a whole one.",
    ]
    attacks = [f"{c['title']}: {c['attack']}" for c in record["columns"] if "attack" in c]
    if attacks:
        table.append(f"- Attacks run: {'; '.join(attacks)}.")
    return "\n".join(table) + "\n"


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
