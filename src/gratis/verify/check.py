"""Decided images once more, by solvers alone: do they agree?"""

import time
from collections import Counter

import torch
from torch import Tensor

from gratis.assess import Progress
from gratis.data import Images
from gratis.run import Record
from gratis.verify.bounds import Box, interval_bounds
from gratis.verify.image import Verifier
from gratis.verify.integer import cutoff, solved
from gratis.verify.nodes import Problem
from gratis.verify.tighten import tightened

OUTCOMES = ("agreed", "disagreed", "timed out", "unclear")

HARD = ("sharpen", "branch", "lp")
EASY = ("crown", "alpha")


def chosen(records: list[Record], count: int) -> list[Record]:
    """At most `count` decided records: two thirds that took the longest search, then others.

    The hard ones in the order of their seconds, the easy ones spread over all; where one kind has
    too few the other fills up.
    """
    decided = [r for r in records if r["verdict"] in ("safe", "unsafe")]
    hard = [r for r in decided if r["rung"] in HARD]
    hard.sort(key=lambda r: -sum(r["seconds"].values()))
    easy = [r for r in decided if r["rung"] in EASY]
    of_easy = min(len(easy), max(count // 3, count - len(hard)))
    step = len(easy) / of_easy if of_easy else 0.0
    return hard[: count - of_easy] + [easy[int(step * place)] for place in range(of_easy)]


def crossed(
    verifier: Verifier, images: Images, records: list[Record], count: int, progress: Progress
) -> tuple[Record, dict[int, Tensor]]:
    """What SCIP says of `chosen` images and whether it agrees, for the summary; and confirmed
    counterexamples of images called safe, by index.

    All classes but the label, within the verifier's time limit together. Units' bounds are
    intervals made tighter by HiGHS, as it states them: nothing that CROWN, slopes, branches or
    our own linear bounds found goes in.
    """
    device = next(verifier.model.parameters()).device
    found: list[Record] = []
    counts: Counter[str] = Counter()
    picked = chosen(records, count)
    for record in picked:
        note = ", ".join(f"{counts[o]} {o}" for o in OUTCOMES if counts[o])
        progress("cross-check", len(found), len(picked), note)
        found.append(_again(verifier, images, record, device))
        counts[found[-1]["outcome"]] += 1
    overturned = {one["index"]: one.pop("point") for one in found if "point" in one}
    summary = {
        "bounds": "intervals, tightened by HiGHS",
        "cutoff": cutoff(verifier.enough(images.pixels(slice(1)).to(device))),
        "time_limit": verifier.settings.time_limit,
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "images": found,
    }
    return summary, overturned


def _again(verifier: Verifier, images: Images, record: Record, device: torch.device) -> Record:
    """One image's outcome. unclear: a solution that the network does not confirm."""
    index, label = record["index"], record["label"]
    x = images.pixels(slice(index, index + 1)).to(device)
    ball, network = verifier.ball, verifier.network
    targets = torch.arange(network.classes, device=device)
    targets = targets[targets != label]
    clock = time.perf_counter()
    end = clock + verifier.settings.time_limit
    with torch.no_grad():
        box = Box.around(x, ball.eps, ball.low, ball.high)
        bounds = interval_bounds(network, box)[:-1]
    problem = Problem(network, box, label, tuple(bounds))
    problem = tightened(problem, clock + verifier.settings.time_limit / 2)
    left = end - time.perf_counter()
    said = solved(problem, targets, verifier.enough(x), left)
    held = None if said.point is None else verifier.confirm(x, label, said.point)
    if held is not None:
        outcome = "agreed" if record["verdict"] == "unsafe" else "disagreed"
    elif said.proved == len(targets):
        outcome = "agreed" if record["verdict"] == "safe" else "disagreed"
    else:
        outcome = "timed out" if said.timed_out else "unclear"
    return {
        "index": index,
        "verdict": record["verdict"],
        "rung": record["rung"],
        "outcome": outcome,
        "targets": len(targets),
        "targets_proved": said.proved,
        "seconds": round(time.perf_counter() - clock, 3),
        **({"point": held} if outcome == "disagreed" and held is not None else {}),
    }
