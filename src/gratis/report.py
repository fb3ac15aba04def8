"""Run directories to one HTML page that needs nothing else; never imports torch.

The page says first what was trained and how it fared, then what it cost, then shows the
curves and a few attacked images, then everything needed to do it again. No accuracy stands
on it without the protocol that measured it.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from gratis.figures import COLOURS, MARKERS, Array, Curve, amplified, curves_svg, png_data_uri
from gratis.run import RECIPE, Record, Run

PICTURES = {
    *("clean", "adversarial", "label", "clean_prediction", "adversarial_prediction"),
    *("classes", "attack", "norm", "eps", "checkpoint"),
}
PICTURE_WIDTH = 96  # CSS pixels: small images are enlarged to at least this, large ones reduced


def write_report(runs: Sequence[Run], out: Path) -> None:
    """Write one self-contained page about `runs` to `out`.

    A run still in training, or not evaluated yet, is shown with what there is.
    """
    if not runs:
        raise ValueError("a report needs at least one run directory; give one or several")
    views = [
        RunView(run, label, series)
        for series, (run, label) in enumerate(zip(runs, _labels(runs), strict=True))
    ]
    page = environment().get_template("report.html.j2")
    html = page.render(
        headline=_headline(views),
        runs=views,
        protocols=_protocols(views),
        unevaluated=[view for view in views if not view.evaluations],
        notes=_notes(views),
        curves=_curves(views),
        pictures=[(view, _pictures(view)) for view in views],
    )
    out.write_text(html, encoding="utf-8")


class RunView:
    """One run as the page shows it: `label` tells it from the others, `series` is its colour."""

    def __init__(self, run: Run, label: str, series: int) -> None:
        self.label = label
        self.series = series
        self.colour = f"var(--series-{series % COLOURS})"
        self.marker = list(MARKERS.values())[series % len(MARKERS)]
        self.directory = run.path.resolve().name
        self.log = run.log()
        self.results = run.results
        self.recipe_text = (run.path / RECIPE).read_text(encoding="utf-8")
        self.recipe_sha256 = run.recipe_sha256
        self.picture_arrays = run.pictures()

    @property
    def evaluations(self) -> list[Record]:
        return [] if self.results is None else list(self.results["evaluations"])

    @property
    def data_name(self) -> str | None:
        return None if self.results is None else str(self.results["data"]["name"])

    @property
    def note(self) -> str | None:
        return None if self.results is None else self.results["data"].get("note")

    @property
    def guards(self) -> list[Record]:
        return self._records("guard")

    @property
    def events(self) -> list[Record]:
        messages = [] if self.results is None else self.results.get("warnings", [])
        later = [{"kind": "warning", "message": message} for message in messages]
        return self._records("guard", "resumed", "warning") + later

    @property
    def last_check(self) -> Record | None:
        checks = self._records("check")
        return checks[-1] if checks else None

    @property
    def spent_passes(self) -> float:
        return max((record.get("spent_passes", 0.0) for record in self.log), default=0.0)

    def _records(self, *kinds: str) -> list[Record]:
        return [record for record in self.log if record["kind"] in kinds]

    def columns(self, kind: str, name: str) -> tuple[Array, Array]:
        """Passes spent and `name` of every record of `kind`.

        NaN stands where a guard went back to an earlier model: what follows is no
        continuation of what came before.
        """
        rows = [
            (record["spent_passes"], record[name]) if record["kind"] == kind else (None, None)
            for record in self.log
            if record["kind"] == kind
            or (record["kind"] == "guard" and record["event"] == "restored")
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]


def _method(run: Run) -> str:
    """The method's name; from the recipe while there are no results."""
    if run.results is not None:
        return str(run.results["method"])
    method = run.recipe.get("method", run.path.resolve().name)
    return str(method["name"] if isinstance(method, dict) else method)


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its method, with the directory where methods repeat."""
    methods = [_method(run) for run in runs]
    names = [run.path.resolve().name for run in runs]
    repeated = Counter(zip(methods, names, strict=True))
    labels = []
    for run, method, name in zip(runs, methods, names, strict=True):
        if methods.count(method) == 1:
            labels.append(method)
        else:
            labels.append(f"{method} ({run.path if repeated[method, name] > 1 else name})")
    return labels


# --- words and tables


def _headline(views: Sequence[RunView]) -> str:
    """The page in plain words: what was trained on what, at what budget, attacked how."""
    sentences = []
    for data in _distinct(view.data_name for view in views if view.results is not None):
        trained = [view for view in views if view.data_name == data]
        budgets = [view.results["budget"]["predicted_passes"] for view in trained if view.results]
        low, high = min(budgets), max(budgets)
        if passes(low) == passes(high):
            budget = f"a budget of {passes(high)}"
        elif high - low < 0.02 * high:  # one budget, that whole updates do not quite use up
            budget = f"a budget of about {passes(high)}"
        else:
            budget = f"budgets of {passes(low)} to {passes(high)}"
        attacks: dict[str, list[str]] = {}  # by threat and images
        for evaluation in (evaluation for view in trained for evaluation in view.evaluations):
            against = f"({threat(evaluation['threat'])}, {images(evaluation)})"
            attacks.setdefault(against, []).append(evaluation["attack"])
        attacked = _listed(
            [f"{_listed(_distinct(names))} {against}" for against, names in attacks.items()]
        )
        sentences.append(
            f"{_listed([view.label for view in trained])}, trained on {data} at {budget} passes "
            f"per training image{' each' if len(trained) > 1 else ''}, "
            f"{f'attacked with {attacked}' if attacks else 'not attacked yet'}."
        )
    waiting = [view.label for view in views if view.results is None]
    if waiting:
        verb = "has" if len(waiting) == 1 else "have"
        sentences.append(
            f"{_listed(waiting)} {verb} not finished; the curves show how far training is."
        )
    return " ".join(sentences)


@dataclass
class Protocol:
    """One way of measuring, and every run that was measured in that way."""

    evaluation: Record
    data: Record
    notes: list[str]
    rows: list[tuple[RunView, Record]]


def _protocols(views: Sequence[RunView]) -> list[Protocol]:
    """The evaluations of all runs, those that compare together, in order of appearance."""
    protocols: dict[str, Protocol] = {}
    for view in views:
        if view.results is None:
            continue
        data = view.results["data"]
        for evaluation in view.evaluations:
            asked = {
                key: evaluation[key]
                for key in ("attack", "parameters", "threat", "checkpoint", "images")
            }
            key = json.dumps([asked, data["name"], data["fingerprint"]], sort_keys=True)
            protocol = protocols.setdefault(key, Protocol(evaluation, data, [], []))
            protocol.rows.append((view, evaluation))
            protocol.notes = _notes([row for row, _ in protocol.rows])
    return list(protocols.values())


def _notes(views: Sequence[RunView]) -> list[str]:
    """What must be said of the data beside any figure; with its name where data sets differ."""
    named = len(_distinct(view.data_name for view in views)) > 1
    return _distinct(
        f"{view.data_name}: {view.note}" if named else view.note for view in views if view.note
    )


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text is not None))


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


# --- figures


def _curves(views: Sequence[RunView]) -> Record:
    """The three figures by name; None where no run logged what a figure shows."""
    accuracy, loss, rate = [], [], []
    for view in views:
        accuracy.append(Curve(view.series, *view.columns("check", "clean_accuracy"), "faint"))
        accuracy.append(Curve(view.series, *view.columns("check", "robust_accuracy")))
        caught = [(guard["spent_passes"], guard["robust_accuracy"]) for guard in view.guards]
        marks = np.array(caught, dtype=np.float64).reshape(-1, 2)
        accuracy.append(Curve(view.series, marks[:, 0], marks[:, 1], "mark"))
        loss.append(Curve(view.series, *view.columns("step", "loss")))
        rate.append(Curve(view.series, *view.columns("step", "learning_rate")))

    ends = [
        f"{view.label}: robust {percent(check['robust_accuracy'])}, "
        f"clean {percent(check['clean_accuracy'])} ({check['attack']}, {threat(check)}, "
        f"{check['images']} images)"
        for view in views
        if (check := view.last_check) is not None
    ]
    described = f"Held-out accuracy against passes spent. At the last check: {'; '.join(ends)}."
    figures = {
        "accuracy": (accuracy, described, "held-out accuracy"),
        "loss": (loss, "Training loss against passes spent.", "training loss"),
        "rate": (rate, "Learning rate against passes spent.", "learning rate"),
    }
    return {
        name: curves_svg(name, words, curves, y_label=y_label, percent=name == "accuracy")
        if any(len(curve.x) for curve in curves)
        else None
        for name, (curves, words, y_label) in figures.items()
    }


def _pictures(view: RunView) -> Record | None:
    """What the page shows of a run's pictures.npz; None where any of it is missing."""
    arrays = view.picture_arrays
    if not arrays.keys() >= PICTURES or len(arrays["clean"]) == 0:
        return None
    clean, adversarial = arrays["clean"], arrays["adversarial"]
    perturbation, factor = amplified(clean, adversarial)
    height, width = clean.shape[-2:]
    side = max(height, width)
    scale = math.ceil(PICTURE_WIDTH / side) if side < PICTURE_WIDTH else PICTURE_WIDTH / side
    names = [str(name) for name in arrays["classes"]]
    columns = [
        {
            "label": names[arrays["label"][i]],
            "clean_prediction": names[arrays["clean_prediction"][i]],
            "adversarial_prediction": names[arrays["adversarial_prediction"][i]],
            "clean": png_data_uri(clean[i]),
            "perturbation": png_data_uri(perturbation[i]),
            "adversarial": png_data_uri(adversarial[i]),
        }
        for i in range(len(clean))
    ]
    return {
        "attack": str(arrays["attack"]),
        "threat": threat({"norm": str(arrays["norm"]), "eps": float(arrays["eps"])}),
        "checkpoint": str(arrays["checkpoint"]),
        "factor": f"{factor:g}",
        "width": round(width * scale),
        "height": round(height * scale),
        "enlarged": scale > 1,
        "columns": columns,
    }


# --- how values are written


def percent(accuracy: float) -> str:
    return f"{100.0 * accuracy:.1f}%"


def passes(count: float) -> str:
    """Two decimals where there are any, as 36.67 and 160."""
    return f"{count:.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    if seconds < 60.0:
        return f"{seconds:.1f} s" if seconds >= 1.0 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def radius(eps: float) -> str:
    """`eps` as people write it: 8/255 where it is such a fraction, 0.2 where that is shorter."""
    plain = f"{eps:.6g}"
    levels = eps * 255.0
    if len(plain) > 5 and round(levels) > 0 and abs(levels - round(levels)) < 1e-5:
        return f"{round(levels)}/255"
    return plain


def threat(record: Record) -> str:
    norms = {"linf": "L∞", "l2": "L2", "l1": "L1"}
    norm = norms.get(record["norm"], record["norm"])
    return f"{norm}, eps {radius(record['eps'])}"


def images(evaluation: Record) -> str:
    count, split = evaluation["images"]["count"], evaluation["images"]["split"]
    return f"{count} {split} image{'' if count == 1 else 's'}"


def parameters(values: Record) -> str:
    return ", ".join(
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    )


def environment() -> Environment:
    """The pages' templates, and the filters that write values as they do."""
    pages = Environment(
        loader=PackageLoader("gratis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (percent, passes, duration, threat, images, parameters):
        pages.filters[write.__name__] = write
    return pages
