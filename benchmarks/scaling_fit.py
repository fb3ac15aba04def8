"""The model of `gratis.scaling` fitted to measured updates, with no more numbers than they carry.

Used by scaling_law.py. Least squares of relative errors over two observations a row: the update,
and its compute alone. A number that is not at least twice its standard error is taken out again,
the least certain first, and the rest fitted anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from scipy.optimize import least_squares

# name -> (value where left out, start, lowest, highest)
UNKNOWN: dict[str, tuple[float, float, float, float]] = {
    "seconds an image": (0.0, 0.01, 0.0, np.inf),
    "line's share": (1.0, 0.9, 0.01, 1.0),
    "host's seconds a gigabyte": (0.0, 0.5, 0.0, np.inf),
    "seconds of coding a gigabyte": (0.0, 1.0, 0.0, np.inf),
    "seconds an update": (0.0, 0.01, 0.0, np.inf),
    "seconds a round": (0.0, 0.001, 0.0, np.inf),
    "overlap": (0.0, 0.5, 0.0, 1.0),
}


@dataclass(frozen=True)
class Row:
    """An update measured on `hosts` hosts, each with `batch` images of its own.

    bits: of a gradient's number.  computed_bytes: that a host sends, without headers, in so many
    rounds; gradient_bytes: one host's whole gradient in fp32.  megabit_per_s: None without a
    limit.  backward: the last backward's share of the compute.
    """

    hosts: int
    batch: int
    gradients: str
    bits: int
    computed_bytes: float
    rounds: int
    gradient_bytes: float
    megabit_per_s: float | None
    seconds_per_update: float
    seconds_of_compute: float
    backward: float

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Row":
        """A row as gradient_traffic.py writes it, which says more than is needed."""
        return cls(**{part.name: entry[part.name] for part in fields(cls)})

    def seconds(self, value: Mapping[str, float]) -> tuple[float, float]:
        """(the update, its compute alone) by the model with these values."""
        images = value["seconds an image"] * self.batch
        compute = images + value["seconds an update"]
        exchange = value["host's seconds a gigabyte"] * self.computed_bytes / 1e9
        exchange += value["seconds a round"] * self.rounds
        if self.megabit_per_s:
            exchange += 8 * self.computed_bytes / (value["line's share"] * 1e6 * self.megabit_per_s)
        hidden = value["overlap"] * min(exchange, self.backward * images)
        coded = self.gradient_bytes / 1e9 if self.bits < 16 else 0.0
        coding = value["seconds of coding a gigabyte"] * coded
        return compute + coding + exchange - hidden, compute


@dataclass(frozen=True)
class Fit:
    """What was fitted, how sure it is, what was left out and why, and the rows it was fitted to."""

    values: dict[str, float]
    errors: dict[str, float]
    left_out: dict[str, str]
    predicted: list[tuple[Row, float]]


def fit(rows: Sequence[Row]) -> Fit:
    """Raises ValueError for fewer than three rows."""
    if len(rows) < 3:
        raise ValueError(f"{len(rows)} rows say too little; measure at least 3 settings")
    names = list(UNKNOWN)[: len(rows) - 1]
    left_out = dict.fromkeys(list(UNKNOWN)[len(names) :], "more numbers than rows carry")
    while True:
        values, errors = _solve(rows, names)
        doubt = {name: _doubt(name, values[name], errors[name]) for name in names}
        worst = max(reversed(names), key=lambda name: doubt[name])
        if doubt[worst] <= 0.5:
            break
        left_out[worst] = (
            f"{UNKNOWN[worst][0]:g} assumed; it came out as {values[worst]:.2g}, "
            f"standard error {errors[worst]:.2g}"
        )
        names.remove(worst)
    full = _full(values)
    return Fit(values, errors, left_out, [(row, row.seconds(full)[0]) for row in rows])


def _doubt(name: str, value: float, error: float) -> float:
    """The standard error in units of what the number adds to the model without it."""
    distance = abs(value - UNKNOWN[name][0])
    return error / distance if distance > 1e-9 else np.inf


def _full(values: Mapping[str, float]) -> dict[str, float]:
    return {name: values.get(name, unknown[0]) for name, unknown in UNKNOWN.items()}


def _solve(rows: Sequence[Row], names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Values and standard errors of `names`, the other numbers where they are left out."""
    measured = np.array([(row.seconds_per_update, row.seconds_of_compute) for row in rows])

    def off(values: Any) -> Any:
        full = _full(dict(zip(names, values, strict=True)))
        return (np.array([row.seconds(full) for row in rows]) / measured - 1).ravel()

    _, start, low, high = (
        np.array(column) for column in zip(*(UNKNOWN[n] for n in names), strict=True)
    )
    found = least_squares(off, start, bounds=(low, high), x_scale=start, xtol=1e-14, ftol=1e-14)
    # in units of the starting values, so that seconds and shares can be told apart from nothing
    _, sizes, directions = np.linalg.svd(found.jac * start, full_matrices=False)
    variance = 2 * found.cost / (measured.size - len(names))
    # a direction in which nothing changes is one of which nothing is known
    spread = np.full_like(sizes, np.inf)
    spread[sizes > 1e-6 * sizes[0]] = np.sqrt(variance) / sizes[sizes > 1e-6 * sizes[0]]
    weights = abs(directions.T)
    spread = np.where(weights > 1e-6, np.maximum(weights, 1e-6) * spread, 0.0)
    errors = start * np.sqrt((spread**2).sum(axis=1))
    return dict(zip(names, found.x.tolist(), strict=True)), dict(
        zip(names, errors.tolist(), strict=True)
    )


def print_fit(fitted: Fit) -> None:
    print("## Fitted to measured updates\n\n| | value | standard error |\n|---|---|---|")
    for name, value in fitted.values.items():
        print(f"| {name} | {value:.4g} | {fitted.errors[name]:.2g} |")
    for name, why in fitted.left_out.items():
        print(f"| {name} | left out | {why} |")
    print("\n| hosts | batch | gradients | Mbit/s | measured s | model s | off |")
    print("|---|---|---|---|---|---|---|")
    for row, seconds in fitted.predicted:
        rate = f"{row.megabit_per_s:g}" if row.megabit_per_s else "unlimited"
        measured = row.seconds_per_update
        print(
            f"| {row.hosts} | {row.batch} | {row.gradients} | {rate} | {measured:.3f} "
            f"| {seconds:.3f} | {100 * (seconds / measured - 1):+.1f} % |"
        )
    print()


def draw_fit(axis: Axes, fitted: Fit) -> None:
    measured = [row.seconds_per_update for row, _ in fitted.predicted]
    ends = [0.8 * min(measured), 1.25 * max(measured)]
    axis.plot(ends, ends, color="grey", linewidth=0.8)
    names = dict.fromkeys(row.gradients for row, _ in fitted.predicted)
    for name, marker in zip(names, "osD^vPX", strict=False):
        points = [(r.seconds_per_update, s) for r, s in fitted.predicted if r.gradients == name]
        axis.plot(*zip(*points, strict=True), marker, markersize=5, label=name)
    axis.set(xlabel="measured seconds an update", ylabel="fitted model's")
    axis.set(xscale="log", yscale="log")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter("")
    axis.legend(fontsize=8)
