"""Run directories made up for the report's tests, and the page taken apart."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gratis.report import write_report
from gratis.run import Run

VOID = {"meta", "link", "br", "img", "!doctype"}


class Page(HTMLParser):
    """The page's elements and text; open elements must close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def evaluation(robust: int = 356, clean: int = 460, **changed: Any) -> dict[str, Any]:
    def measured(correct: int) -> dict[str, Any]:
        accuracy = correct / 500
        return {
            "correct": correct,
            "accuracy": accuracy,
            "ci95": [accuracy - 0.04, accuracy + 0.03],
        }

    return {
        "attack": "pgd-50-10",
        "parameters": {"steps": 50, "restarts": 10, "alpha": 0.05},
        "threat": {"norm": "linf", "eps": 8 / 255},
        "checkpoint": "last",
        "update": 3840,
        "images": {"split": "test", "start": 0, "count": 500},
        "clean": measured(clean),
        "robust": measured(robust),
        "seconds": 12.5,
        "passes": 333.4,
        **changed,
    }


RESULTS: dict[str, Any] = {
    "schema": 1,
    "versions": {"gratis": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
    "device": "cpu",
    "seed": 7,
    "recipe_sha256": "",
    "data": {"name": "digits", "split": "1297/500", "fingerprint": "f00dfeed", "note": None},
    "method": "fgsm-rs",
    "budget": {
        "predicted_passes": 160.0,
        "metered_passes": 160.0,
        "papers_passes": 192.0,
        "guard_passes": 3.5,
        "updates": 3840,
        "data_passes": 96.0,
        "seconds": 75.0,
    },
}


def log(updates: int = 400) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    asked = {"attack": "pgd-10", "norm": "linf", "eps": 8 / 255, "images": 200}
    for update in range(1, updates + 1):
        at = {"update": update, "epoch": update / 10, "spent_passes": update / 2.5}
        at |= {"seconds": update / 5}
        records.append(
            {"kind": "step", **at, "loss": 2.3 / update**0.3, "learning_rate": 0.1 * update}
        )
        if update % 40 == 0:
            risen = update / updates
            accuracies = {"clean_accuracy": 0.9 * risen, "robust_accuracy": 0.6 * risen}
            records.append(
                {"kind": "epoch", **at, "train_loss": 1.0, "train_accuracy": None},
            )
            records.append({"kind": "check", **at, **asked, **accuracies})
    return records


def pictures(channels: int = 1, side: int = 8, n: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    clean = rng.random((n, channels, side, side), dtype=np.float32)
    step = rng.choice(np.float32([-0.2, 0.2]), clean.shape)
    return {
        "clean": clean,
        "adversarial": np.clip(clean + step, 0.0, 1.0),
        "label": np.arange(n),
        "clean_prediction": np.arange(n),
        "adversarial_prediction": np.arange(n)[::-1].copy(),
        "classes": np.array(["zero", "one", "two"]),
        "attack": np.array("pgd-50-10"),
        "norm": np.array("linf"),
        "eps": np.array(0.2),
        "checkpoint": np.array("last"),
    }


def make_run(
    path: Path,
    *,
    evaluations: list[dict[str, Any]] | None = None,
    records: list[dict[str, Any]] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    finished: bool = True,
    **changed: Any,
) -> Run:
    path.mkdir(parents=True)
    recipe = {"method": {"name": changed.get("method", "fgsm-rs")}, "budget": {"passes": 160}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run = Run.open(path)
    if finished:
        results = RESULTS | {"recipe_sha256": run.recipe_sha256} | changed
        results["evaluations"] = [evaluation()] if evaluations is None else evaluations
        (path / "results.json").write_text(json.dumps(results))
    lines = [json.dumps(record) + "\n" for record in (log() if records is None else records)]
    (path / "log.jsonl").write_text("".join(lines))
    if arrays is not None:
        np.savez(path / "pictures.npz", **arrays)
    return run


def page_of(tmp_path: Path, *runs: Run) -> Page:
    out = tmp_path / "report.html"
    write_report(runs, out)
    return Page(out.read_text(encoding="utf-8"))
