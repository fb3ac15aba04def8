"""What `gratis pictures` kept of each run, put side by side where the images are the same."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gratis.figures import Array, Curve, curves_svg, png_data_uri
from gratis.names import spell
from gratis.report.images import size, surfaces
from gratis.report.runs import RunView, notes
from gratis.report.values import distinct, listed, norm, percent, radius, threat
from gratis.run import Record


@dataclass(frozen=True)
class Sight:
    """The views of one run: what was asked, and the arrays of each kind by name."""

    view: RunView
    about: Record
    classes: list[str]
    surfaces: dict[str, Array]
    large: dict[str, Array]
    falls: dict[str, Array]

    @property
    def cost(self) -> list[int]:
        """Forwards and backwards of one image each that finding the falls took."""
        return [int(count) for count in self.falls["cost"]]

    def accuracy(self, eps: float) -> float:
        """The share of the images that is right and falls at no radius up to eps."""
        return float((self.falls["eps"] > eps).mean())


def groups(views: Sequence[RunView]) -> list[Record]:
    """What the page shows of all views.npz: a group for every set of images, large
    radius and norm of the runs' own radii.
    """
    found: dict[str, list[Sight]] = {}
    for view in views:
        if view.view_arrays:
            sight = _sight(view)
            asked = [sight.about[k] for k in ("data", "count", "large_eps")]
            key = json.dumps([*asked, sight.about["threat"]["norm"]])
            found.setdefault(key, []).append(sight)
    return [_group(number, sights) for number, sights in enumerate(found.values())]


def _sight(view: RunView) -> Sight:
    arrays = view.view_arrays

    def of(kind: str) -> dict[str, Array]:
        start = f"{kind} "
        return {k.removeprefix(start): array for k, array in arrays.items() if k.startswith(start)}

    classes = [str(name) for name in arrays["classes"]]
    about = json.loads(str(arrays["about"]))
    return Sight(view, about, classes, of("surface"), of("large"), of("falls"))


def _group(number: int, sights: Sequence[Sight]) -> Record:
    about = sights[0].about
    threats = distinct(threat(sight.about["threat"]) for sight in sights)
    return {
        "data": about["data"]["name"],
        "split": about["data"]["split"],
        "count": about["count"],
        "surface_images": about["surface_images"],
        "attack": about["attack"],
        "norm": norm(about["threat"]["norm"]),
        "large_eps": radius(about["large_eps"]),
        "checkpoint": listed(distinct(sight.about["checkpoint"] for sight in sights)),
        "threats": listed(threats),
        "notes": notes([sight.view for sight in sights]),
        "surfaces": surfaces([(sight.view.label, sight.surfaces) for sight in sights]),
        "large": [_large(sights, kind) for kind in ("untargeted", "targeted")],
        "curve": _curve(number, sights),
        "radii": _radii(sights),
        "sights": sights,
        "classes": _classes(sights),
        "extremes": [_extremes(sight) for sight in sights],
        "command": _command(sights),
    }


def _command(sights: Sequence[Sight]) -> str:
    about = sights[0].about
    runs = [str(sight.view.path) for sight in sights]
    settings = ["--eps", spell(about["large_eps"]), "--limit", str(about["count"])]
    return shlex.join(["gratis", "pictures", *runs, *settings])


def _large(sights: Sequence[Sight], kind: str) -> Record:
    """Originals in the first row, each run's attacked images in one more."""
    first = sights[0].large
    names = sights[0].classes
    labels = [names[i] for i in first["label"]]
    targets = [names[i] for i in first["target"]] if kind == "targeted" else None
    rows = [
        {
            "view": sight.view,
            "cells": [
                {
                    "image": png_data_uri(image),
                    "before": names[before],
                    "after": names[after],
                    "right": after == label,
                }
                for image, before, after, label in zip(
                    sight.large[kind],
                    sight.large["clean prediction"],
                    sight.large[f"{kind} prediction"],
                    sight.large["label"],
                    strict=True,
                )
            ],
        }
        for sight in sights
    ]
    return {
        "kind": kind,
        "labels": labels,
        "targets": targets,
        "originals": [png_data_uri(image) for image in first["clean"]],
        "rows": rows,
        **size(first["clean"]),
    }


def _curve(number: int, sights: Sequence[Sight]) -> str:
    curves, words = [], []
    of = norm(sights[0].about["threat"]["norm"])
    for sight in sights:
        radii = [0.0, *sight.about["radii"]]
        shares = [sight.accuracy(eps) for eps in radii]
        curves.append(Curve(sight.view.series, np.array(radii), np.array(shares)))
        said = ", ".join(
            f"{percent(share)} at {radius(eps)}" for eps, share in zip(radii, shares, strict=True)
        )
        words.append(f"{sight.view.label} {said}")
    return curves_svg(
        f"falls-{number}",
        f"Accuracy against {of} eps. {'; '.join(words)}.",
        curves,
        y_label="accuracy",
        x_label=f"{of} eps",
        percent=True,
    )


def _radii(sights: Sequence[Sight]) -> Record:
    """The curve's numbers: a column for each radius that any run was attacked at."""
    radii = sorted({0.0, *(eps for sight in sights for eps in sight.about["radii"])})
    return {
        "heads": [radius(eps) for eps in radii],
        "rows": [
            (
                sight.view,
                [
                    sight.accuracy(eps) if eps in (0.0, *sight.about["radii"]) else None
                    for eps in radii
                ],
            )
            for sight in sights
        ],
    }


def _classes(sights: Sequence[Sight]) -> list[Record]:
    """A line for each class: of how many images each run is right clean, and within its eps."""
    label = sights[0].falls["label"]
    lines = []
    for index, name in enumerate(sights[0].classes):
        of_class = label == index
        count = int(of_class.sum())
        cells = []
        for sight in sights if count else []:
            eps, answers = sight.falls["eps"][of_class], sight.falls["prediction"][of_class]
            fallen = eps <= sight.about["threat"]["eps"]
            taken = np.bincount(answers[fallen & (answers != index)], minlength=1)
            cells.append(
                {
                    "clean": int((eps > 0).sum()),
                    "robust": int((~fallen).sum()),
                    "taken": sight.classes[taken.argmax()] if taken.any() else None,
                }
            )
        if count:
            lines.append({"name": name, "count": count, "cells": cells})
    return lines


def _extremes(sight: Sight) -> Record:
    """The images that fall first, and those that stand longest, the most steadfast first."""
    shown = sight.falls["shown"]
    half = len(shown) // 2
    places = {"Fall first": range(half), "Stand longest": range(len(shown) - 1, half - 1, -1)}
    return {
        "view": sight.view,
        "threat": threat(sight.about["threat"]),
        "halves": [
            {"title": title, "columns": [_fallen(sight, place, shown[place]) for place in order]}
            for title, order in places.items()
        ],
        **size(sight.falls["clean"]),
    }


def _fallen(sight: Sight, place: int, image: int) -> Record:
    falls = sight.falls
    eps = float(falls["eps"][image])
    return {
        "number": int(image),
        "label": sight.classes[falls["label"][image]],
        "prediction": sight.classes[falls["prediction"][image]],
        "stands": not np.isfinite(eps),
        "eps": radius(eps if np.isfinite(eps) else sight.about["radii"][-1]),
        "before": float(falls["before"][image]),
        "after": float(falls["after"][image]),
        "clean": png_data_uri(falls["clean"][place]),
        "adversarial": png_data_uri(falls["adversarial"][place]),
    }
