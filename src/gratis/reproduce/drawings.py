"""A page's figures: sweeps, learning rates, pictures, surfaces. Never imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gratis.figures import COLOURS, MARKERS, Curve, curves_svg
from gratis.report import images
from gratis.reproduce.papers import Sweep, Table
from gratis.run import Record, Run

PICTURES, SURFACES = "bim.npz", "surfaces.npz"


def figures(table: Table, record: Record, folder: Path) -> list[Record]:
    """Each {title, svg, key}; key: name, colour and marker of every line."""
    found = [_sweep(table, sweep, record) for sweep in table.sweeps]
    if table.rates:
        found.append(_rates(record, folder))
    return [figure for figure in found if figure]


def _sweep(table: Table, sweep: Sweep, record: Record) -> Record:
    rows = {row["name"]: row for row in record["rows"]}
    titles = {column["name"]: column["title"] for column in record["columns"]}
    curves: list[Curve] = []
    key: list[Record] = []
    for series in dict.fromkeys(row.series for row in table.rows if row.x is not None):
        for column in sweep.columns:
            points = [
                (row.x, rows[row.name]["cells"][column])
                for row in table.rows
                if row.series == series and row.x is not None
            ]
            for kind, kept in (("measured", "main"), ("printed", "faint")):
                shown = sorted((x, cell[kind] / 100) for x, cell in points if kind in cell)
                if shown:
                    x, y = np.array(shown, dtype=np.float64).T
                    curves.append(Curve(len(key), x, y, kept))  # type: ignore[arg-type]
            name = f"{series} {titles[column]}" if series else titles[column]
            key.append(_key(name, len(key)))
    if not curves:
        return {}
    svg = curves_svg(
        f"{table.name}-{'-'.join(sweep.columns)}",
        f"{sweep.title}, against {sweep.x_label}.",
        curves,
        y_label="accuracy",
        x_label=sweep.x_label,
        log_x=sweep.log,
        percent=True,
    )
    return {
        "title": sweep.title,
        "caption": "Solid: here. Dashed: the paper.",
        "svg": svg,
        "key": key,
    }


def _rates(record: Record, folder: Path) -> Record:
    curves: list[Curve] = []
    key: list[Record] = []
    for row in record["rows"]:
        if row["status"] != "done":
            continue
        steps = [entry for entry in Run(folder / row["directory"]).log() if entry["kind"] == "step"]
        x = np.array([step["spent_passes"] for step in steps])
        y = np.array([step["learning_rate"] for step in steps])
        curves.append(Curve(len(key), x, y))
        key.append(_key(row["title"], len(key)))
    if not curves:
        return {}
    described = "Learning rate of every update against passes spent, by row."
    svg = curves_svg(f"{record['table']}-rates", described, curves, y_label="learning rate")
    return {"title": "Learning rate", "caption": "Of every update.", "svg": svg, "key": key}


def _key(name: str, series: int) -> Record:
    return {
        "name": name,
        "colour": f"var(--series-{series % COLOURS})",
        "marker": list(MARKERS.values())[series % len(MARKERS)],
    }


def pictures(record: Record, folder: Path) -> list[Record]:
    """The BIM pictures of each row, with its title."""
    return [
        {"title": title, **images.attacked(arrays)}
        for title, arrays in _arrays(record, folder, PICTURES)
    ]


def surfaces(record: Record, folder: Path) -> list[Record]:
    """The surfaces of all rows at each radius."""
    return images.surfaces(_arrays(record, folder, SURFACES))


def _arrays(record: Record, folder: Path, file: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """(title, arrays) of the rows that are done and have such a file."""
    found = []
    for row in record["rows"]:
        path = folder / row["directory"] / file
        if row["status"] == "done" and path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                found.append((row["title"], {name: arrays[name] for name in arrays.files}))
    return found
