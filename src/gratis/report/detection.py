"""What stands on a page, and on the terminal, of runs that find boxes."""

import shlex
from collections.abc import Sequence

from gratis.report.runs import RunView
from gratis.report.values import NOTHING, by_severity, listed
from gratis.run import Record

FIGURES = {
    "map": "mAP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "small",
    "map_medium": "medium",
    "map_large": "large",
}
"""The keys of an entry and the heads of their columns."""

TRAINED_ON = (
    "Judged on the training images themselves: it shows that the network can learn them, and says "
    "nothing of other images."
)
GENERATED = (
    "Corrupted here, each image by a seed of its own: there are no official files of COCO-C, and "
    "other versions of the libraries make other images."
)


def points(share: float | None) -> str:
    """A precision as papers write it, 35.8 for 0.358; a dash where there is nothing to find."""
    return NOTHING if share is None else f"{100 * share:.1f}"


def detections(views: Sequence[RunView]) -> list[Record]:
    """Every run that was judged by its boxes: view, entry and what is said of it."""
    return [
        {
            "view": view,
            "entry": entry,
            "figures": [(entry[key], points(entry[key])) for key in FIGURES],
            "protocol": protocol(entry),
            "notes": [*notes(entry), *view.remarks(entry)],
            "command": shlex.join(command(view, entry)),
        }
        for view in views
        if (entry := view.detection) is not None
    ]


def corrupted(views: Sequence[RunView]) -> list[Record]:
    """Every evaluation on COCO-C: view, entry, what is said of it, and its table."""
    return [
        {
            "view": view,
            "entry": entry,
            "facts": facts(entry),
            "protocol": protocol(entry),
            "notes": [*notes(entry), *view.remarks(entry)],
            "table": table(entry),
            "command": _corrupted_command(view, entry),
        }
        for view in views
        for entry in view.shifts
        if is_coco_c(entry)
    ]


def is_coco_c(entry: Record) -> bool:
    """Whether an entry among a run's shifts is of boxes."""
    return "maps" in entry


def protocol(entry: Record) -> str:
    """In one line what every figure of it must be read with."""
    if is_coco_c(entry):
        parts = [f"COCO-C, {entry['images_per_cell']:,} images a cell", entry["preprocessing"]]
        parts += entry.get("partial", [])
        if "library" in entry:
            parts.append(f"{entry['library']} {entry['version']}")
    else:
        count, split = entry["images"]["count"], entry["images"]["split"]
        parts = [f"{count:,} {split} images fitted into {entry['input_pixels']} px"]
    return "; ".join(
        [*parts, f"checkpoint {entry['checkpoint']}", entry["judge"], entry["precision"]]
    )


def notes(entry: Record) -> list[str]:
    """What a reader must be told beside the figures."""
    said = [TRAINED_ON] if entry["trained_on"] else []
    if entry.get("source") == "generated":
        said.append(GENERATED)
    if "partial" in entry:
        said.append(f"Partial: {listed(entry['partial'])}.")
    if degenerate := entry.get("boxes", {}).get("degenerate"):
        said.append(f"{degenerate} boxes have no area inside of their image and were left out.")
    return said


def facts(entry: Record) -> list[tuple[str, str]]:
    """What came out of COCO-C: names and figures."""
    said = [("clean mAP", points(entry["clean_map"]))]
    if entry["mpc"] is not None:
        said.append(("mPC", f"{points(entry['mpc'])}, the mean of {entry['mpc_cells']} cells"))
    if entry["rpc"] is not None:
        said.append(("rPC", f"{100 * entry['rpc']:.1f}% of the clean mAP"))
    return said


def table(entry: Record) -> Record:
    """mAP by corruption (rows) and severity, and their mean."""
    means = {name: sum(row.values()) / len(row) for name, row in entry["maps"].items()}
    return by_severity(entry["maps"], mean=means)


def command(view: RunView, entry: Record) -> list[str]:
    return [*view.evaluated(entry), "--limit", str(entry["images"]["count"])]


def _corrupted_command(view: RunView, entry: Record) -> str:
    words = [*view.evaluated(entry), "--shift", f"{entry['shift']}={entry['source']}"]
    if len(entry["maps"]) > 15:
        words += ["--corruptions", "19"]
    if len(severities := table(entry)["severities"]) < 5:
        words += ["--severities", *severities]
    if entry.get("limit"):
        words += ["--limit", str(entry["limit"])]
    if entry.get("lacking"):
        words.append("--partial")
    return shlex.join(words)
