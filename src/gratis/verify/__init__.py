"""Exact verification of small piecewise-linear networks in Linf balls.

affine      stages of affine maps in float64;  lower: a network as such stages, or why not
bounds      intervals and CROWN
nodes       subproblems that assume signs of ReLUs;  slopes: their bounds improved by gradient
leaf        best multipliers by linear programming
branch      branch and bound
program     a box and its unsettled units as solvers see them;  solver: their processes
tighten     units' bounds by linear programs (HiGHS);  integer: margins by integer programs (SCIP)
search      the ladder's complete end: branch and bound, linear programs, integer programs
image       the ladder that one image climbs
check       decided images once more, by solvers alone
record      a run's images: verdicts by line, the summary;  console: that on the terminal
"""

from gratis.verify.image import Settings, Verdict, Verifier
from gratis.verify.lower import lowered
from gratis.verify.record import verify_run

__all__ = ["Settings", "Verdict", "Verifier", "lowered", "verify_run"]
