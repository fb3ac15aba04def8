"""Verifying a run's checkpoint image by image: what is kept, what is counted.

RUN/verify/linf-0.1.jsonl    a verdict a line, written as soon as it is there
RUN/verify/linf-0.1.json     the summary
"""

import base64
import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gratis.assess import Progress, nowhere, split_for, trained
from gratis.balls import Linf
from gratis.data import Images
from gratis.evaluate import clopper_pearson
from gratis.files import LogWriter, write_atomically
from gratis.names import spell
from gratis.recipe import from_plain
from gratis.run import Record, Run
from gratis.setting import pick_device
from gratis.verify.check import crossed
from gratis.verify.image import RUNGS, VERDICTS, Settings, Verdict, Verifier
from gratis.verify.solver import INSTALL, INTEGER, LINEAR

SCHEMA = 3
SEARCHED = ("branch", "lp", "milp")
"""Rungs whose proofs of earlier schemas are made anew: large multipliers rounded unseen there."""

IMAGES_AT_ONCE = 50
"""In the first attack. Blocks start at multiples of it, so that resuming changes no batch."""


def verify_run(
    run: Run,
    ball: Linf,
    settings: Settings,
    *,
    limit: int | None = None,
    checkpoint: str = "last",
    cross_check: int = 0,
    progress: Progress = nowhere,
    images: Images | None = None,
) -> Record:
    """Verify the first `limit` test images within `ball` and return the summary, also written.

    What was decided about the same network, ball and data is not asked again, whatever the
    settings were; undecided images are tried again with a longer time limit or with solvers that
    were not there. An interruption loses the image at hand. cross_check: so many decided images
    are solved by SCIP as well. images: the test split where it is at hand.
    """
    recipe = from_plain(run.recipe)
    state, warnings = run.load_checkpoint(checkpoint)
    images = split_for(recipe, state, images)
    model = trained(recipe, images, state).to(pick_device(recipe.engine.device))
    verifier = Verifier(model, tuple(images.x.shape[1:]), ball, settings)
    if cross_check and not {LINEAR, INTEGER} <= set(verifier.solvers):
        raise ValueError(
            f"a cross-check needs {LINEAR} and {INTEGER}, which are not both installed: {INSTALL}"
        )
    question = {
        "schema": SCHEMA,
        **verifier.question(),
        "data": {"name": images.name, "split": images.split, "fingerprint": images.fingerprint},
    }
    count = len(images) if limit is None else min(limit, len(images))
    stem = run.path / "verify" / f"linf-{spell(ball.eps).replace('/', 'over')}"
    stem.parent.mkdir(exist_ok=True)
    before = _before(Path(f"{stem}.json"), question)
    log = Path(f"{stem}.jsonl")
    known = _known(log, question, settings, before)
    records = _verdicts(log, known, question, verifier, images, count, progress)
    checked = before.get("cross_check")
    if cross_check:
        checked, overturned = crossed(verifier, images, records, cross_check, progress)
        records = _overturned(log, records, verifier, overturned)
    summary = {
        **question,
        "settings": asdict(settings),
        "solvers": {name: name in verifier.solvers for name in (LINEAR, INTEGER)},
        "images": {"split": images.split, "start": 0, "count": count},
        "checkpoint": checkpoint,
        "update": state["updates"],
        "relus": verifier.network.relus,
        **({"warnings": warnings} if warnings else {}),
        **counted(records),
    }
    if checked is not None:
        summary["cross_check"] = checked
    content = json.dumps(summary, indent=2) + "\n"
    write_atomically(Path(f"{stem}.json"), content.encode())
    return summary


def _before(path: Path, question: Record) -> Record:
    """The summary that is there, where it is about the same network, ball and data."""
    summary: Record = json.loads(path.read_text("utf-8")) if path.exists() else {}
    about = ("network_sha256", "threat", "pixels", "least_margin", "data")
    return summary if all(summary.get(key) == question.get(key) for key in about) else {}


def _key(question: Record) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]


def _known(path: Path, question: Record, settings: Settings, before: Record) -> dict[int, Record]:
    """The file's records about `question`, by image; a decided one before an undecided one.

    Questions of schema 1 held the settings as well, the time limit among them: those of the
    present, of the usual and of the last summary's limit are recognised. A counterexample that
    came after a proof has overturned it.
    """
    current = _key(question)
    keys: dict[str, Record] = {_key({**question, "schema": 2}): {}}
    last = before.get("settings", {}).get("time_limit", settings.time_limit)
    for seconds in (Settings.time_limit, last, settings.time_limit):
        formerly = asdict(replace(settings, time_limit=seconds))
        key = _key({**question, "schema": 1, "settings": formerly})
        keys[key] = {"time_limit": seconds, "solvers": []}
    keys[current] = {}
    known: dict[int, Record] = {}
    for record in _read(path):
        index, proof = record["index"], record["verdict"] == "safe"
        if record["question"] not in keys:
            continue
        if proof and record["question"] != current and record["rung"] in SEARCHED:
            continue
        if not _decided(known.get(index)) or record["verdict"] == "unsafe":
            known[index] = {**keys[record["question"]], **record}
    return known


def _decided(record: Record | None) -> bool:
    return record is not None and record["verdict"] != "undecided"


def _settled(record: Record | None, verifier: Verifier) -> bool:
    """Whether to try again would do no more than was done."""
    if record is None or _decided(record):
        return record is not None
    longer = verifier.settings.time_limit > record["time_limit"]
    return not longer and set(verifier.solvers) <= set(record["solvers"])


def _verdicts(
    path: Path,
    known: dict[int, Record],
    question: Record,
    verifier: Verifier,
    images: Images,
    count: int,
    progress: Progress,
) -> list[Record]:
    """The records of the first `count` images, those known or fresh ones."""
    done = {i: known[i] for i in range(count) if _settled(known.get(i), verifier)}
    device = next(verifier.model.parameters()).device
    writer = LogWriter(path)
    counts = Counter(record["verdict"] for record in done.values())

    def show() -> None:
        note = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
        progress("verify", sum(counts.values()), count, note)

    show()
    try:
        for start in range(0, count, IMAGES_AT_ONCE):
            block = range(start, min(start + IMAGES_AT_ONCE, count))
            if all(i in done for i in block):
                continue
            whole = slice(start, min(start + IMAGES_AT_ONCE, len(images)))
            x, y = images.pixels(whole).to(device), images.y[whole].to(device)
            clock = time.perf_counter()
            points = verifier.attacked(verifier.settings.attack, x, y)
            attack_seconds = (time.perf_counter() - clock) / len(x)
            for i in block:
                if i in done:
                    continue
                at = i - start
                verdict = verifier.verdict(x[at : at + 1], int(y[at]), points[at])
                verdict.seconds["attack"] = attack_seconds
                done[i] = {
                    "question": _key(question),
                    "index": i,
                    "label": int(y[at]),
                    **_plain(verdict),
                    "time_limit": verifier.settings.time_limit,
                    "solvers": list(verifier.solvers),
                }
                writer.write(done[i])
                writer.flush()
                counts[verdict.verdict] += 1
                show()
    finally:
        writer.close()
    return [done[i] for i in range(count)]


def _overturned(
    path: Path, records: list[Record], verifier: Verifier, points: dict[int, Tensor]
) -> list[Record]:
    """The records, with those unsafe of which a point [1, C, H, W] proves it; they are kept."""
    writer = LogWriter(path)
    try:
        for index, point in points.items():
            margins = verifier.margins(point, records[index]["label"])
            verdict = Verdict("unsafe", "milp", point=point, margins=margins)
            plain = _plain(verdict) | {"seconds": records[index]["seconds"]}
            records[index] = {**records[index], **plain}
            writer.write(records[index])
    finally:
        writer.close()
    return records


def _read(path: Path) -> list[Record]:
    """The records of a file of verdicts; a line torn by a crash is left out."""
    records = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _plain(verdict: Verdict) -> Record:
    return {
        "verdict": verdict.verdict,
        "rung": verdict.rung,
        "bound": verdict.bound,
        "nodes": verdict.nodes,
        "margins": verdict.margins,
        "point": None if verdict.point is None else encoded(verdict.point),
        "seconds": {name: round(verdict.seconds.get(name, 0.0), 4) for name in RUNGS},
    }


def encoded(point: Tensor) -> str:
    """float32 pixels [1, C, H, W], little-endian, in base64."""
    return base64.b64encode(point.cpu().numpy().astype("<f4").tobytes()).decode()


def decoded(text: str, shape: tuple[int, ...]) -> Tensor:
    """The image [1, *shape] of a record's `point`."""
    pixels = np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
    return torch.from_numpy(pixels).view(1, *shape)


def counted(records: list[Record]) -> dict[str, Any]:
    """Counts, the bounds of verified accuracy with 95 % intervals, and what it took.

    verified.low counts safe images, verified.high also undecided ones: what complete verification
    without a time limit would give for these images lies between. verified.ci95 covers the
    accuracy on all images of the kind, from the lower end of the one to the upper of the other.
    """
    total = len(records)
    counts = Counter(r["verdict"] for r in records)
    low, high = counts["safe"], counts["safe"] + counts["undecided"]
    seconds = [sum(r["seconds"].values()) for r in records]
    return {
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "rungs": {
            rung: {v: n for v in VERDICTS if (n := _count(records, rung, v))} for rung in RUNGS
        },
        "clean": _share(total - counts["misclassified"], total),
        "verified": {
            "low": _share(low, total),
            "high": _share(high, total),
            "ci95": [clopper_pearson(low, total)[0], clopper_pearson(high, total)[1]],
        },
        "seconds": {
            "mean": mean(seconds),
            "median": median(seconds),
            "largest": max(seconds),
            "by_rung": {rung: sum(r["seconds"].get(rung, 0.0) for r in records) for rung in RUNGS},
        },
    }


def _count(records: list[Record], rung: str, verdict: str) -> int:
    return sum(r["rung"] == rung and r["verdict"] == verdict for r in records)


def _share(count: int, total: int) -> Record:
    return {
        "correct": count,
        "accuracy": count / total,
        "ci95": list(clopper_pearson(count, total)),
    }
