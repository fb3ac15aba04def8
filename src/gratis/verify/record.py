"""Verifying a run's checkpoint image by image: what is kept, what is counted.

RUN/verify/linf-0.1.jsonl    a verdict a line, written as soon as it is there
RUN/verify/linf-0.1.json     the summary
"""

import base64
import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gratis.assess import Progress, nowhere, trained
from gratis.balls import Linf
from gratis.data import Images
from gratis.evaluate import clopper_pearson
from gratis.names import spell
from gratis.recipe import from_plain
from gratis.run import LogWriter, Record, Run
from gratis.setting import load_split, pick_device
from gratis.verify.image import RUNGS, VERDICTS, Settings, Verdict, Verifier

SCHEMA = 1

IMAGES_AT_ONCE = 50
"""In the first attack. Blocks start at multiples of it, so that resuming changes no batch."""


def verify_run(
    run: Run,
    ball: Linf,
    settings: Settings,
    *,
    limit: int | None = None,
    checkpoint: str = "last",
    progress: Progress = nowhere,
    images: Images | None = None,
) -> Record:
    """Verify the first `limit` test images within `ball` and return the summary, also written.

    Images with a verdict about the same network, ball, data and settings are not done again; an
    interruption loses the image at hand. images: the test split where it is at hand.
    """
    recipe = from_plain(run.recipe)
    state, warnings = run.load_checkpoint(checkpoint)
    if images is None:
        images = load_split(recipe.data, "test")
    model = trained(recipe, images, state).to(pick_device(recipe.engine.device))
    verifier = Verifier(model, tuple(images.x.shape[1:]), ball, settings)
    question = {
        "schema": SCHEMA,
        **verifier.question(),
        "data": {"name": images.name, "split": images.split, "fingerprint": images.fingerprint},
    }
    count = len(images) if limit is None else min(limit, len(images))
    stem = run.path / "verify" / f"linf-{spell(ball.eps).replace('/', 'over')}"
    stem.parent.mkdir(exist_ok=True)
    records = _verdicts(Path(f"{stem}.jsonl"), question, verifier, images, count, progress)
    summary = {
        **question,
        "images": {"split": images.split, "start": 0, "count": count},
        "checkpoint": checkpoint,
        "update": state["updates"],
        "relus": verifier.network.relus,
        **({"warnings": warnings} if warnings else {}),
        **counted(records),
    }
    fresh = Path(f"{stem}.json.tmp")
    fresh.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    os.replace(fresh, f"{stem}.json")
    return summary


def _verdicts(
    path: Path,
    question: Record,
    verifier: Verifier,
    images: Images,
    count: int,
    progress: Progress,
) -> list[Record]:
    """The records of the first `count` images, those in the file or fresh ones."""
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
    known = {r["index"]: r for r in _read(path) if r["question"] == key}
    device = next(verifier.model.parameters()).device
    writer = LogWriter(path)
    counts = Counter(known[i]["verdict"] for i in range(count) if i in known)

    def show() -> None:
        note = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
        progress("verify", sum(counts.values()), count, note)

    show()
    try:
        for start in range(0, count, IMAGES_AT_ONCE):
            block = range(start, min(start + IMAGES_AT_ONCE, count))
            if all(i in known for i in block):
                continue
            whole = slice(start, min(start + IMAGES_AT_ONCE, len(images)))
            x, y = images.pixels(whole).to(device), images.y[whole].to(device)
            clock = time.perf_counter()
            points = verifier.attacked(verifier.settings.attack, x, y)
            attack_seconds = (time.perf_counter() - clock) / len(x)
            for i in block:
                if i in known:
                    continue
                at = i - start
                verdict = verifier.verdict(x[at : at + 1], int(y[at]), points[at])
                verdict.seconds["attack"] = attack_seconds
                known[i] = {"question": key, "index": i, "label": int(y[at]), **_plain(verdict)}
                writer.write(known[i])
                writer.flush()
                counts[verdict.verdict] += 1
                show()
    finally:
        writer.close()
    return [known[i] for i in range(count)]


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
        "bound": verdict.bound if verdict.bound is None or np.isfinite(verdict.bound) else None,
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
            "by_rung": {rung: sum(r["seconds"][rung] for r in records) for rung in RUNGS},
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
