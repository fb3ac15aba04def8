"""Tables of attacked images and of loss surfaces, for every page that shows some."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gratis.figures import Array, amplified, png_data_uri
from gratis.names import spell
from gratis.run import Record

PICTURE_WIDTH = 96  # CSS pixels: small images are enlarged to at least this, large ones reduced
CELL = 14  # pixels of a surface's side for each of its points
DARK, BRIGHT = np.array([0.10, 0.15, 0.45]), np.array([1.00, 0.86, 0.35])


def size(shown: Array) -> Record:
    """How large images [n, C, H, W] stand on a page: width, height, and whether that enlarges."""
    height, width = shown.shape[-2:]
    side = max(height, width)
    scale = math.ceil(PICTURE_WIDTH / side) if side < PICTURE_WIDTH else PICTURE_WIDTH / side
    return {
        "width": round(width * scale),
        "height": round(height * scale),
        "enlarged": scale > 1,
    }


def attacked(arrays: Mapping[str, Array]) -> Record:
    """Images, what was added and what came out: {factor, columns} and their size.

    arrays: clean and adversarial [n, C, H, W], label, clean_prediction, adversarial_prediction
    [n], classes.
    """
    clean, adversarial = arrays["clean"], arrays["adversarial"]
    perturbation, factor = amplified(clean, adversarial)
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
    return {"factor": f"{factor:g}", "columns": columns, **size(clean)}


def surfaces(rows: Sequence[tuple[str, Mapping[str, Array]]]) -> list[Record]:
    """The surfaces at each radius, all of a radius in one scale: {radius, low, high, kinds}.

    rows: a title and the surfaces [n, n] by "adversarial 0.1", "random 0.1".
    """
    radii = sorted({float(name.split()[1]) for _, arrays in rows for name in arrays})
    return [_at_radius(rows, radius) for radius in radii]


def _at_radius(rows: Sequence[tuple[str, Mapping[str, Array]]], radius: float) -> Record:
    shown = [
        (title, name.split()[0], losses)
        for title, arrays in rows
        for name, losses in arrays.items()
        if float(name.split()[1]) == radius
    ]
    low = min(float(losses.min()) for *_, losses in shown)
    high = max(float(losses.max()) for *_, losses in shown)
    kinds: dict[str, list[Record]] = {}
    for title, kind, losses in shown:
        kinds.setdefault(kind, []).append(
            {
                "title": title,
                "centre": f"{losses[len(losses) // 2, len(losses) // 2]:.3f}",
                "highest": f"{losses.max():.3f}",
                "image": png_data_uri(_coloured(losses, low, high)),
                "size": CELL * len(losses),
            }
        )
    return {"radius": spell(radius), "low": f"{low:.3f}", "high": f"{high:.3f}", "kinds": kinds}


def _coloured(losses: Array, low: float, high: float) -> Array:
    """[n, n] -> [3, n, n] from dark to bright."""
    share = (losses - low) / max(high - low, 1e-12)
    return DARK[:, None, None] * (1 - share) + BRIGHT[:, None, None] * share
