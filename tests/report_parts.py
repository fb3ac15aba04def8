"""What newer runs hold, made up for the report's tests: parts, unions, checks, proofs, views."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gratis.run import Run
from tests.reports import evaluation, make_run, pictures


def share(correct: int, count: int = 500) -> dict[str, Any]:
    accuracy = correct / count
    return {"correct": correct, "accuracy": accuracy, "ci95": [accuracy * 0.9, accuracy]}


def autoattack(**changed: Any) -> dict[str, Any]:
    """An evaluation of several parts: 460 right, 300, 290, 290, 290 left."""
    steps = [("apgd-ce", 160, 300), ("apgd-t", 10, 290), ("fab-t", 0, 290), ("square", 0, 290)]
    parts = [
        {
            "attack": attack,
            "images": standing + broken,
            "broken": broken,
            "standing": standing,
            "forwards": 45_000,
            "backwards": 0 if attack == "square" else 44_000,
            "seconds": 12.0,
        }
        for attack, broken, standing in steps
    ]
    return evaluation(
        290,
        attack="autoattack",
        parameters={"version": "standard", "attacks": "apgd-ce, apgd-t, fab-t, square"},
        forwards=1_234_567,
        backwards=765_432,
        parts=parts,
        **changed,
    )


def union() -> dict[str, Any]:
    same = {key: evaluation()[key] for key in ("threat", "checkpoint", "images")}
    return {"attacks": ["pgd-50-10", "autoattack"], **same, "robust": share(285)}


def check(verdict: str = "signs: M3, M7", **changed: Any) -> dict[str, Any]:
    same = {key: evaluation()[key] for key in ("threat", "checkpoint", "images")}
    findings = [
        {
            "id": f"M{number}",
            "name": name,
            "verdict": found,
            "statistic": None if found == "not run" else 0.25,
            "shown": "–" if found == "not run" else "0.250",  # noqa: RUF001
            "pass_at": "at most 0.1",
            "fail_at": "above 0.5",
            "origin": "Athalye 2018",
            "about": "One step beats many.",
        }
        for number, name, found in [
            (1, "one step against many", "pass"),
            (3, "larger eps", "warn"),
            (7, "square against gradients", "fail"),
            (10, "a <b>name</b>", "not run"),
        ]
    ]
    return {
        **same,
        "verdict": verdict,
        "level": "full",
        "passes": 321.5,
        "forwards": 1000,
        "backwards": 900,
        "seconds": 65.0,
        "findings": findings,
        **changed,
    }


def verified(low: int = 150, high: int = 170, eps: float = 8 / 255, **changed: Any) -> Any:
    counts = {"safe": low, "unsafe": 200 - high - 4, "undecided": high - low, "misclassified": 4}
    return {
        "schema": 1,
        "threat": {"norm": "linf", "eps": eps},
        "settings": {"attack": "cw-50-2", "time_limit": 60.0, "seed": 0},
        "data": {"name": "digits", "split": "test", "fingerprint": "f00dfeed"},
        "images": {"split": "test", "start": 0, "count": 200},
        "checkpoint": "last",
        "update": 3840,
        "counts": counts,
        "clean": share(196, 200),
        "verified": {
            "low": share(low, 200),
            "high": share(high, 200),
            "ci95": [low / 200 - 0.06, high / 200 + 0.05],
        },
        "seconds": {"mean": 0.5, "median": 0.25, "largest": 60.5},
        **changed,
    }


def add_verified(run: Run, *summaries: dict[str, Any]) -> None:
    (run.path / "verify").mkdir()
    for summary in summaries:
        name = f"linf-{summary['threat']['eps']!r}.json"
        (run.path / "verify" / name).write_text(json.dumps(summary))


def views(seed: int = 0, count: int = 40, shown: int = 3, **changed: Any) -> dict[str, np.ndarray]:
    """What `gratis pictures` keeps of a run, with noise for images: 3 classes, 8x8."""
    rng = np.random.default_rng(seed)
    radii = [0.1, 0.2, 0.4]
    about = {
        "checkpoint": "last",
        "update": 3840,
        "data": {"name": "digits", "split": "test", "fingerprint": "f00dfeed"},
        "count": count,
        "surface_images": 16,
        "large_eps": 30 / 255,
        "threat": {"norm": "linf", "eps": 0.2},
        "attack": "pgd-10",
        "radii": radii,
        **changed,
    }
    label = np.arange(count) % 3
    fallen = rng.choice([0.0, *radii, np.inf], count)
    fallen[: 2 * shown] = [0.1] * shown + [np.inf] * shown
    arrays = {
        "about": np.array(json.dumps(about)),
        "classes": np.array(["zero", "one", "two"]),
        "falls eps": fallen,
        "falls before": rng.random(count),
        "falls after": rng.random(count),
        "falls prediction": np.where(np.isfinite(fallen), (label + 1) % 3, label),
        "falls label": label,
        "falls cost": np.array([54_321, 12_345]),
        "falls shown": np.arange(2 * shown),
        "falls clean": rng.random((2 * shown, 1, 8, 8), dtype=np.float32),
        "falls adversarial": rng.random((2 * shown, 1, 8, 8), dtype=np.float32),
        "large label": label[:4],
        "large target": (label[:4] + 1) % 3,
        "large clean prediction": label[:4],
        "large untargeted prediction": label[:4],
        "large targeted prediction": (label[:4] + 1) % 3,
    }
    for kind in ("clean", "untargeted", "targeted"):
        arrays[f"large {kind}"] = rng.random((4, 1, 8, 8), dtype=np.float32)
    for kind in ("adversarial", "random"):
        arrays[f"surface {kind} {30 / 255!r}"] = rng.random((5, 5), dtype=np.float32)
    return arrays


def make_full_run(path: Path, **changed: Any) -> Run:
    """A run with everything that a page can show."""
    run = make_run(
        path,
        arrays=pictures(),
        evaluations=[evaluation(), autoattack()],
        unions=[union()],
        checks=changed.pop("checks", [check()]),
        **changed,
    )
    add_verified(run, verified())
    run.write_views(views(changed.get("seed", 0)))
    return run
