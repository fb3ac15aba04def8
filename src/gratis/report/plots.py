"""The page's line drawings: training curves, and robust accuracy against what it cost."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from gratis.figures import Curve, curves_svg
from gratis.report.phases import in_words, spans
from gratis.report.protocols import Protocol
from gratis.report.runs import RunView
from gratis.report.values import passes, percent, protocol, threat
from gratis.run import Record


def training_curves(views: Sequence[RunView]) -> Record:
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
    phases = in_words(views)
    figures = {
        "accuracy": (accuracy, described, "held-out accuracy"),
        "loss": (loss, "Training loss against passes spent.", "training loss"),
        "rate": (rate, "Learning rate against passes spent.", "learning rate"),
    }
    return {
        name: curves_svg(
            name,
            words + phases,
            curves,
            y_label=y_label,
            percent=name == "accuracy",
            spans=spans(views, explained=name == "rate"),
        )
        if any(len(curve.x) for curve in curves)
        else None
        for name, (curves, words, y_label) in figures.items()
    }


def pareto(found: Sequence[Protocol]) -> list[Record]:
    """For each protocol of several runs whose cost is known, and that had equally many training
    images, {protocol, images, svg, points, frontier}.

    images: training images, None where that was not kept.  points: (passes, robust accuracy, run).
    frontier: the runs that none beats at their price.
    """
    figures: list[Record] = []
    for measured, images, rows in _priced(found):
        curves, points = [], []
        for view, spent, entry in rows:
            robust = entry["robust"]
            points.append((spent, robust["accuracy"], view))
            across = np.array([spent, spent])
            curves.append(Curve(view.series, across, np.array(robust["ci95"]), "bar"))
            curves.append(Curve(view.series, across[:1], np.array([robust["accuracy"]]), "point"))
        best = frontier([(x, y) for x, y, _ in points])
        ahead = [view for x, y, view in points if (x, y) in best]
        steps = _steps(best, max(x for x, *_ in points))
        words = "; ".join(
            f"{view.label}: {percent(y)} for {passes(x)} passes" for x, y, view in points
        )
        asked = protocol(measured.evaluation, measured.data["name"])
        svg = curves_svg(
            f"pareto-{len(figures)}",
            f"Robust accuracy against passes spent ({asked}). {words}.",
            [Curve(0, steps[:, 0], steps[:, 1], "frontier"), *curves],
            y_label="robust accuracy",
            percent=True,
        )
        figures.append(
            {
                "protocol": measured,
                "images": images,
                "svg": svg,
                "points": points,
                "frontier": ahead,
            }
        )
    return figures


def _priced(
    found: Sequence[Protocol],
) -> Iterator[tuple[Protocol, int | None, list[tuple[RunView, float, Record]]]]:
    """(protocol, training images, [(run, passes, entry), ...]) of two runs or more: a pass is one
    for each training image, so that passes compare where there are equally many of those.
    """
    for measured in found:
        rows = [(v, v.price, entry) for v, entry in measured.rows if v.price is not None]
        for images in dict.fromkeys(view.training_images for view, *_ in rows):
            alike = [row for row in rows if row[0].training_images == images]
            if len(alike) > 1:
                yield measured, images, alike


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy) those that no other point beats at the same cost or less."""
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _steps(best: Sequence[tuple[float, float]], right: float) -> np.ndarray:
    """The corners of the staircase through the frontier, on to the most expensive run."""
    corners = [best[0]]
    for (_, before), (cost, accuracy) in pairwise(best):
        corners += [(cost, before), (cost, accuracy)]
    return np.array([*corners, (right, best[-1][1])])
