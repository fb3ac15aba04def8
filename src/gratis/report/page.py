"""The page as a whole."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from gratis.report.detection import FIGURES, corrupted, detections, points
from gratis.report.flags import flags
from gratis.report.headline import headline
from gratis.report.images import attacked
from gratis.report.plots import pareto, training_curves
from gratis.report.protocols import protocols, verifications
from gratis.report.runs import RunView, notes, run_views
from gratis.report.shifts import shifts
from gratis.report.values import environment, threat
from gratis.report.views import groups
from gratis.run import Record, Run

PICTURES = {
    *("clean", "adversarial", "label", "clean_prediction", "adversarial_prediction"),
    *("classes", "attack", "norm", "eps", "checkpoint"),
}
SCRIPT = "sorting.js"


def write_report(runs: Sequence[Run], out: Path) -> None:
    """Write one self-contained page about `runs` to `out`.

    A run still in training, or not evaluated yet, is shown with what there is.
    """
    if not runs:
        raise ValueError("a report needs at least one run directory; give one or several")
    views = run_views(runs)
    pages = environment()
    assert pages.loader is not None
    script, *_ = pages.loader.get_source(pages, SCRIPT)
    found = protocols(views)
    html = pages.get_template("report.html.j2").render(
        headline=headline(views),
        runs=views,
        flags=flags(views),
        protocols=found,
        verifications=verifications(views),
        shifts=shifts(views),
        detections=detections(views),
        detection_heads=list(FIGURES.values()),
        corrupted=corrupted(views),
        points=points,
        pareto=pareto(found),
        unevaluated=[
            view
            for view in views
            if not (view.evaluations or view.verified or view.detection is not None)
        ],
        notes=notes(views),
        curves=training_curves(views),
        pictures=[(view, _pictures(view)) for view in views],
        groups=groups(views),
        script=Markup(script),
        # the one script that the page's own policy lets run
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    out.write_text(html, encoding="utf-8")


def _pictures(view: RunView) -> Record | None:
    """What the page shows of a run's pictures.npz; None where any of it is missing."""
    arrays = view.picture_arrays
    if not arrays.keys() >= PICTURES or len(arrays["clean"]) == 0:
        return None
    return {
        "attack": str(arrays["attack"]),
        "threat": threat({"norm": str(arrays["norm"]), "eps": float(arrays["eps"])}),
        "checkpoint": str(arrays["checkpoint"]),
        **attacked(arrays),
    }
