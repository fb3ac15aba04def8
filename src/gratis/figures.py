"""The report's drawings: curves as inline SVG, images as PNG data URIs; never imports torch."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

Array = npt.NDArray[Any]

# A run's colour is a CSS variable of the page, so that light and dark each have their own;
# matplotlib draws with a stand-in that is replaced afterwards. Shape goes with colour, for
# readers who cannot tell the colours apart.
COLOURS = 6
# matplotlib's name of each shape, and the same shape for the page's own legend
MARKERS = {
    "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M-3-3H3V3H-3z",
    "^": "M0-3.6L3.4 3H-3.4z",
    "D": "M0-4L4 0L0 4L-4 0z",
    "v": "M0 3.6L3.4-3H-3.4z",
    "P": "M-1.3-3.6h2.6v2.3h2.3v2.6h-2.3v2.3h-2.6v-2.3h-2.3v-2.6h2.3z",
    "d": "M0-4.4L2.6 0L0 4.4L-2.6 0z",
}
_SERIES = {f"#5e{index:02x}a5": f"var(--series-{index})" for index in range(COLOURS)}
_TEXT, _GRID, _CARD = "#010a01", "#020a02", "#030a03"
_STAND_INS = {_TEXT: "var(--muted)", _GRID: "var(--rule)", _CARD: "var(--card)", **_SERIES}

WIDTH = 270.0  # points between the axes' ends, as good as always
NAME_SIZE, NAME_WIDTH = 7.5, 0.6  # points; and what a letter takes of them, with room to spare
POINTS = 300  # a curve keeps this many; more cannot be seen at the width of the page


@dataclass(frozen=True)
class Curve:
    """One line of a figure; a NaN in `x` breaks it.

    kind: "mark" and "point" are no lines but large signs; "bar" is a thin line without any, for
    an interval; "frontier" belongs to no series.
    """

    series: int
    x: Array
    y: Array
    kind: Literal["main", "faint", "mark", "point", "bar", "frontier"] = "main"


@dataclass(frozen=True)
class Span:
    """A stretch of the x axis that begins with an upright line (none at 0), and is named above.

    names: the first of them for which there is room.  series: whose it is; None for all.
    """

    begin: float
    end: float
    names: tuple[str, ...] = ()
    series: int | None = None


def curves_svg(
    name: str,
    description: str,
    curves: Sequence[Curve],
    *,
    y_label: str,
    percent: bool = False,
    x_label: str = "passes spent per training image",
    log_x: bool = False,
    spans: Sequence[Span] = (),
) -> Markup:
    """An <svg> element with `curves` and `spans`; `description` is its text alternative.

    `name` must be unique on the page. With `percent`, y runs from 0 to 1 and is shown in percent.
    With `log_x`, x is shown by powers of ten, and starts at 0 without.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same runs give the same bytes, and no two figures the same ids
        "font.size": 9.0,
        "text.color": _TEXT,
        "axes.labelcolor": _TEXT,
        "axes.edgecolor": _GRID,
        "xtick.color": _GRID,
        "ytick.color": _GRID,
        "xtick.labelcolor": _TEXT,
        "ytick.labelcolor": _TEXT,
        "grid.color": _GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        for curve in curves:
            _draw(axes, curve, scale=100.0 if percent else 1.0)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        else:
            axes.set_xlim(left=0.0)
        for span in spans:
            _mark(axes, span)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if percent:
            axes.set_ylim(-2.0, 102.0)
            axes.yaxis.set_major_formatter("{x:.0f}%")
        buffer = io.StringIO()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        figure.savefig(buffer, format="svg")
    return _inline(buffer.getvalue(), description)


def _draw(axes: Any, curve: Curve, scale: float) -> None:
    x, y = thinned(curve.x), thinned(curve.y) * scale
    # a few marks tell lines apart where one at every point would hide them; each line has its
    # own places, so that lines on top of each other are all seen
    every = max(1, len(x) // 12)
    first = curve.series % COLOURS * every // COLOURS
    colour = list(_SERIES)[curve.series % COLOURS]
    look: dict[str, Any] = {
        "color": colour,
        "marker": list(MARKERS)[curve.series % len(MARKERS)],
        "markeredgecolor": _CARD,
        "markeredgewidth": 0.6,
        "markersize": 5.0,
        "markevery": (first, every),
        "linewidth": 1.7,
    }
    if curve.kind == "faint":
        look |= {"linestyle": (0, (4, 2)), "linewidth": 1.0, "markersize": 3.5}
    if curve.kind == "mark":
        look |= {"marker": "X", "linestyle": "none", "markersize": 10.0, "markevery": 1}
        look |= {"zorder": 5, "markeredgewidth": 1.0}
    if curve.kind == "point":
        look |= {"linestyle": "none", "markersize": 8.0, "zorder": 4}
    if curve.kind == "bar":
        look |= {"marker": "", "linewidth": 1.4, "zorder": 3}
    if curve.kind == "frontier":
        look |= {"marker": "", "linewidth": 1.0, "linestyle": (0, (2, 2)), "color": _TEXT}
    axes.plot(x, y, **look)


def _mark(axes: Any, span: Span) -> None:
    left, right = axes.get_xlim()
    colour = _TEXT if span.series is None else list(_SERIES)[span.series % COLOURS]
    if span.begin > left:
        axes.axvline(span.begin, color=colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    room = WIDTH * (span.end - span.begin) / (right - left)
    fitting = [
        name
        for name in span.names
        if max(map(len, name.splitlines())) * NAME_WIDTH * NAME_SIZE <= room
    ]
    if fitting:
        middle = (span.begin + span.end) / 2
        place = axes.get_xaxis_transform()  # upwards from the top of the axes
        look: Any = {"fontsize": NAME_SIZE, "ha": "center", "va": "bottom", "linespacing": 1.15}
        axes.text(middle, 1.02, fitting[0], transform=place, **look)


def thinned(values: Array) -> Array:
    """At most POINTS values, each the mean of its neighbours."""
    if len(values) <= POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, POINTS)])


def _inline(svg: str, description: str) -> Markup:
    """matplotlib's stand-alone file as an element that can stand in a page beside others."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)  # would style the page
    svg = re.sub(r"font-family: [^;]*; ", "", svg)  # the page's own
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    referenced = set(re.findall(r"#([A-Za-z]\w*)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in referenced else "", svg)
    svg = svg.replace("xlink:href", "href")
    for stand_in, variable in _STAND_INS.items():
        svg = svg.replace(stand_in, variable)
    opening = f'<svg {view_box[0]} role="img" aria-label="{escape(description)}">'
    return Markup(opening + svg[svg.index(">") + 1 :])  # matplotlib escapes text itself


def amplified(clean: Array, adversarial: Array) -> tuple[Array, float]:
    """The perturbations [n, C, H, W] around mid-grey, and the factor they are shown at.

    One factor for all, the largest round one that clips nothing, so that they compare.
    """
    delta = adversarial.astype(np.float64) - clean
    largest = float(np.abs(delta).max(initial=0.0))
    if largest == 0.0:
        return np.full_like(delta, 0.5), 1.0
    # float32 pixels put a perturbation of eps a hair beyond it; that must not cost a step
    factor = 0.5 / largest * (1.0 + 1e-5)
    factor = float(np.floor(factor)) if factor >= 4.0 else float(np.floor(factor * 10.0)) / 10.0
    return 0.5 + factor * delta, factor


def png_data_uri(image: Array) -> str:
    """`image` [C, H, W] in [0, 1], C 1 or 3, as a data URI."""
    from PIL import Image

    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
