"""A process of its own: mixed-integer programs, one for each target class, by SCIP.

Reads a pickle with the arrays of `Program.job`; writes a pickle (status, pixels or None) for each
target until one has a point below zero. Imports nothing of gratis: torch would take seconds.
"""

import os
import pickle
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyscipopt

Array = npt.NDArray[Any]


def total(coefficients: Array, variables: list[Any]) -> Any:
    return pyscipopt.quicksum(
        float(coefficients[at]) * variables[at] for at in coefficients.nonzero()[0]
    )


def solved(job: dict[str, Any], target: int, seconds: float) -> tuple[str, Array | None]:
    """SCIP's status for one target and the pixels of its best solution.

    Unit: output a, pre-activation z in [low, high] and a switch d:
    a >= z, a >= 0, a <= high d, a <= z - low (1 - d). Only margins below `cutoff` are looked for.
    """
    model = pyscipopt.Model()
    model.hideOutput()
    model.setParam("limits/time", max(seconds, 0.01))
    model.setParam("limits/primal", job["clearly"])
    pixels = [
        model.addVar(lb=float(low), ub=float(high))
        for low, high in zip(job["pixel_low"], job["pixel_high"], strict=True)
    ]
    outputs: list[Any] = []
    for place, (low, high) in enumerate(
        zip(job["low"].tolist(), job["high"].tolist(), strict=True)
    ):
        z = model.addVar(lb=low, ub=high)
        a = model.addVar(lb=0.0, ub=high)
        d = model.addVar(vtype="B")
        before = total(job["units"][place, : len(outputs)], outputs)
        of_pixels = total(job["pixels"][place], pixels)
        model.addCons(z - of_pixels - before == float(job["constant"][place]))
        model.addCons(a >= z)
        model.addCons(a <= high * d)
        model.addCons(a <= z - low * (1 - d))
        outputs.append(a)
    constant = float(job["cost_constant"][target])
    margin = total(job["cost_pixels"][target], pixels) + total(job["cost_units"][target], outputs)
    model.setObjective(margin + constant, "minimize")
    model.setObjlimit(job["cutoff"])
    model.optimize()
    best = model.getBestSol() if model.getNSols() else None
    # one that is not below the cutoff is kept too
    if best is None or model.getSolObjVal(best) >= job["cutoff"]:
        return str(model.getStatus()), None
    return str(model.getStatus()), np.array([best[pixel] for pixel in pixels])


def main() -> None:
    end = time.perf_counter()
    job = pickle.load(sys.stdin.buffer)
    end += job["seconds"]
    # whatever the solver prints must not come between the pickles
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for target in range(len(job["cost_constant"])):
        status, point = solved(job, target, end - time.perf_counter())
        out.write(pickle.dumps((status, point)))
        out.flush()
        if point is not None:
            break
    os._exit(0)


if __name__ == "__main__":
    main()
