"""A process of its own: one linear program with many objectives, by HiGHS.

Reads a pickle with the arrays of `Program.job`, which may have costs of pre-activations and one
row more (row x, a <= row_limit, its multiplier last); writes a pickle (objective's place, its least
value without the constant, multipliers) for each that is solved. Imports nothing of gratis:
torch would take seconds.
"""

import os
import pickle
import sys
from typing import Any

import highspy
import numpy as np
from scipy import sparse


def model(job: dict[str, Any]) -> highspy.HighsLp:
    """Columns: pixels x, outputs a, pre-activations z of the units; rows in three blocks.

    z - pixels x - units a = constant;  a - z >= 0;  a - slope z <= -slope low.
    """
    low, high, constant = job["low"], job["high"], job["constant"]
    count, pixels = len(low), len(job["pixel_low"])
    slope = high / (high - low)
    eye, empty = sparse.eye_array(count), sparse.csc_array((count, pixels))
    matrix = sparse.block_array(
        [
            [sparse.csc_array(-job["pixels"]), sparse.csc_array(-job["units"]), eye],
            [empty, eye, -eye],
            [empty, eye, -sparse.diags_array(slope)],
        ],
        format="csc",
    )
    program = highspy.HighsLp()
    program.num_row_, program.num_col_ = matrix.shape
    program.col_cost_ = np.zeros(matrix.shape[1])
    program.col_lower_ = np.concatenate([job["pixel_low"], np.zeros(count), low])
    program.col_upper_ = np.concatenate([job["pixel_high"], high, high])
    below, above = np.full(count, -np.inf), np.full(count, np.inf)
    program.row_lower_ = np.concatenate([constant, np.zeros(count), below])
    program.row_upper_ = np.concatenate([constant, above, -slope * low])
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = matrix.indptr
    program.a_matrix_.index_ = matrix.indices
    program.a_matrix_.value_ = matrix.data
    return program


def main() -> None:
    job = pickle.load(sys.stdin.buffer)
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.passModel(model(job))
    count = len(job["low"])
    wanted = np.arange(count)
    if "row" in job:
        used = job["row"].nonzero()[0].astype(np.int32)
        solver.addRow(-np.inf, job["row_limit"], len(used), used, job["row"][used])
        wanted = np.append(wanted, 3 * count)
    inputs = job.get("cost_inputs", np.zeros((len(job["cost_units"]), count)))
    costs = np.concatenate([job["cost_pixels"], job["cost_units"], inputs], 1)
    columns = np.arange(costs.shape[1], dtype=np.int32)
    for place, cost in enumerate(costs):
        solver.changeColsCost(len(columns), columns, cost)
        solver.run()
        if solver.getModelStatus() == highspy.HighsModelStatus.kOptimal:
            multipliers = np.array(solver.getSolution().row_dual)[wanted]
            value = solver.getInfo().objective_function_value
            sys.stdout.buffer.write(pickle.dumps((place, value, multipliers)))
            sys.stdout.buffer.flush()
    # the interpreter's own end may take longer than the last program
    os._exit(0)


if __name__ == "__main__":
    main()
