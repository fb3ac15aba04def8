"""A page's figures: sweeps, learning rates, pictures, surfaces. Never imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gratis.figures import COLOURS, MARKERS, Array, Curve, amplified, curves_svg, png_data_uri
from gratis.names import spell
from gratis.reproduce.papers import Sweep, Table
from gratis.run import Record, Run

PICTURES, SURFACES = "bim.npz", "surfaces.npz"
CELL = 14  # pixels of a surface's side for each of its points
LOW, HIGH = np.array([0.10, 0.15, 0.45]), np.array([1.00, 0.86, 0.35])


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
    """The BIM pictures of each row: {title, factor, columns}, the images as data URIs."""
    found = []
    for title, arrays in _arrays(record, folder, PICTURES):
        names = [str(name) for name in arrays["classes"]]
        perturbation, factor = amplified(arrays["clean"], arrays["adversarial"])
        columns = [
            {
                "label": names[arrays["label"][i]],
                "before": names[arrays["clean_prediction"][i]],
                "after": names[arrays["adversarial_prediction"][i]],
                "clean": png_data_uri(arrays["clean"][i]),
                "perturbation": png_data_uri(perturbation[i]),
                "adversarial": png_data_uri(arrays["adversarial"][i]),
            }
            for i in range(len(arrays["clean"]))
        ]
        found.append({"title": title, "factor": f"{factor:g}", "columns": columns})
    return found


def surfaces(record: Record, folder: Path) -> list[Record]:
    """The surfaces at each radius, all of a radius in one scale: {radius, low, high, maps}."""
    rows = _arrays(record, folder, SURFACES)
    radii = sorted({float(name.split()[1]) for _, arrays in rows for name in arrays})
    found = []
    for radius in radii:
        maps = [
            (title, name.split()[0], losses)
            for title, arrays in rows
            for name, losses in arrays.items()
            if float(name.split()[1]) == radius
        ]
        low = min(float(losses.min()) for *_, losses in maps)
        high = max(float(losses.max()) for *_, losses in maps)
        found.append(
            {
                "radius": spell(radius),
                "low": f"{low:.3f}",
                "high": f"{high:.3f}",
                "maps": [
                    {
                        "title": title,
                        "kind": kind,
                        "centre": f"{losses[len(losses) // 2, len(losses) // 2]:.3f}",
                        "highest": f"{losses.max():.3f}",
                        "image": png_data_uri(_coloured(losses, low, high)),
                        "size": CELL * len(losses),
                    }
                    for title, kind, losses in maps
                ],
            }
        )
    return found


def _coloured(losses: Array, low: float, high: float) -> Array:
    """[n, n] -> [3, n, n] from dark to bright."""
    share = (losses - low) / max(high - low, 1e-12)
    return LOW[:, None, None] * (1 - share) + HIGH[:, None, None] * share


def _arrays(record: Record, folder: Path, file: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """(title, arrays) of the rows that are done and have such a file."""
    found = []
    for row in record["rows"]:
        path = folder / row["directory"] / file
        if row["status"] == "done" and path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                found.append((row["title"], {name: arrays[name] for name in arrays.files}))
    return found
