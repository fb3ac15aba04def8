"""A network on a box as a linear program sees it: pixels, and units of unsettled sign."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gratis.verify.affine import Piecewise
from gratis.verify.bounds import ENTRIES_AT_ONCE, Box, unstable

Array = npt.NDArray[Any]
Bounds = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rows:
    """R functions  pixels x + units a + constant  of P pixels x and the outputs a of U units.

    pixels [R, P], units [R, U], constant [R].
    """

    pixels: Array
    units: Array
    constant: Array


def open_places(bounds: Bounds) -> list[Tensor]:
    """The flat places of the units of unsettled sign, for each ReLU layer."""
    return [unstable(low, high).flatten().nonzero().flatten() for low, high in bounds]


def unit_rows(size: int, units: Tensor) -> Tensor:
    """Rows [1, m, size], each 1 at one of `units` [m]."""
    rows = torch.zeros(1, len(units), size, dtype=torch.double, device=units.device)
    return rows.scatter_(2, units[None, :, None], 1.0)


def composed(network: Piecewise, rows: Tensor, bounds: Bounds) -> Rows:
    """Rows [1, R, *outputs] of the stage behind `bounds` in pixels and unsettled units.

    Exact: a unit whose sign is settled is nought or passes its input on.
    """
    size = max(prod(stage.inputs) for stage in network.stages)
    at_once = max(1, ENTRIES_AT_ONCE // size)
    starts = range(0, max(1, rows.shape[1]), at_once)
    parts = [_composed(network, rows[:, start : start + at_once], bounds) for start in starts]
    return Rows(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.units for part in parts]),
        np.concatenate([part.constant for part in parts]),
    )


def _composed(network: Piecewise, rows: Tensor, bounds: Bounds) -> Rows:
    rows, total = network.stages[len(bounds)].transpose(rows)
    found: list[Tensor] = []
    for place, units in reversed(list(enumerate(open_places(bounds)))):
        flat = rows.flatten(2)
        found.append(flat[0][:, units])
        passing = (bounds[place][0] >= 0).flatten().to(flat.dtype)
        rows = (flat * passing).view(rows.shape)
        rows, added = network.stages[place].transpose(rows)
        total = total + added
    units = torch.cat([rows.new_zeros(rows.shape[1], 0), *reversed(found)], 1)
    return Rows(*(part.cpu().numpy() for part in (rows[0].flatten(1), units, total[0])))


@dataclass(frozen=True)
class Program:
    """Every image of a box and the unsettled units: low, high [U] bound pre-activations `rows`.

    Units stand layer by layer; a row knows those before its own layer (the others' columns are
    nought). pixel_low, pixel_high [P].
    """

    pixel_low: Array
    pixel_high: Array
    low: Array
    high: Array
    rows: Rows

    def widened(self, by: float) -> "Program":
        """With room `by` around the units, which a solver's tolerances may need."""
        return replace(self, low=self.low - by, high=self.high + by)

    def job(self, costs: Rows) -> dict[str, Array]:
        """As a solver's process reads it, with objectives."""
        return {
            "pixel_low": self.pixel_low,
            "pixel_high": self.pixel_high,
            "low": self.low,
            "high": self.high,
            "pixels": self.rows.pixels,
            "units": self.rows.units,
            "constant": self.rows.constant,
            "cost_pixels": costs.pixels,
            "cost_units": costs.units,
            "cost_constant": costs.constant,
        }


def program(network: Piecewise, box: Box, bounds: Bounds) -> Program:
    """The program of the ReLU layers that `bounds` are those of, first layer first."""
    places = open_places(bounds)
    count = sum(map(len, places))
    size = box.low.numel()
    # what is joined below is empty where no unit is unsettled
    pixels, units = [np.zeros((0, size))], [np.zeros((0, count))]
    constant, low, high = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
    for place, chosen in enumerate(places):
        if not len(chosen):
            continue
        stage = network.stages[place]
        ones = unit_rows(bounds[place][0].numel(), chosen).view(1, -1, *stage.outputs)
        found = composed(network, ones, bounds[:place])
        pixels.append(found.pixels)
        units.append(np.pad(found.units, ((0, 0), (0, count - found.units.shape[1]))))
        constant.append(found.constant)
        for parts, bound in ((low, bounds[place][0]), (high, bounds[place][1])):
            parts.append(bound.flatten()[chosen].cpu().numpy())
    rows = Rows(np.concatenate(pixels), np.concatenate(units), np.concatenate(constant))
    return Program(
        box.low.flatten().cpu().numpy(),
        box.high.flatten().cpu().numpy(),
        np.concatenate(low),
        np.concatenate(high),
        rows,
    )
