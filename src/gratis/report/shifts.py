"""What stands on a page, and on the terminal, of images from another distribution."""

import shlex
from collections.abc import Sequence

from gratis.report.detection import is_coco_c
from gratis.report.runs import RunView
from gratis.report.values import by_severity, listed, percent
from gratis.run import Record

NAMES = {
    "imagenet-c": "ImageNet-C",
    "cifar10-c": "CIFAR-10-C",
    "cifar100-c": "CIFAR-100-C",
    "imagenet-r": "ImageNet-R",
    "stylized": "Stylized-ImageNet",
    "corruptions": "corruptions, generated",
}
COMPARES_NOT = (
    "Corruptions made here, of other images or at another size than the benchmark's: these errors "
    "do not compare with published ones on ImageNet-C or CIFAR-10-C."
)


def shifts(views: Sequence[RunView]) -> list[Record]:
    """Every evaluation on another distribution, run by run: view, entry and what is said of it."""
    return [
        {
            "view": view,
            "name": title(entry),
            "entry": entry,
            "facts": facts(entry),
            "protocol": protocol(entry),
            "notes": [*notes(entry), *view.remarks(entry), *([view.note] if view.note else [])],
            "table": table(entry) if "cells" in entry else None,
            "command": command(view, entry),
        }
        for view in views
        for entry in view.shifts
        if not is_coco_c(entry)
    ]


def title(entry: Record) -> str:
    return NAMES.get(entry["shift"], str(entry["shift"]))


def facts(entry: Record) -> list[tuple[str, str]]:
    """What came out: a name and its figure with what it was measured on."""
    return _rendition(entry) if "accuracy" in entry else _corruptions(entry)


def _corruptions(entry: Record) -> list[tuple[str, str]]:
    said = []
    if "mean_error" in entry:
        count = entry["mean_of"]
        said.append(
            ("mean error", f"{percent(entry['mean_error'])} over {count} corruptions, unnormalised")
        )
    if "mean_error_19" in entry:
        found = percent(entry["mean_error_19"])
        said.append(("mean error of 19", f"{found}, the four extra ones among them, unnormalised"))
    if "mce" in entry:
        said.append(("mCE", f"{percent(entry['mce'])}, normalised by {entry['normaliser']}"))
    if "relative_mce" in entry:
        said.append(("relative mCE", f"{percent(entry['relative_mce'])}, beyond the clean error"))
    if "clean" in entry:
        said.append(("clean error", _measured(entry["clean"], "error")))
    return said


def _rendition(entry: Record) -> list[tuple[str, str]]:
    among = f", among {entry['classes']} classes" if "classes" in entry else ""
    said = [("accuracy", _measured(entry["accuracy"], "accuracy") + among)]
    if "clean" in entry:
        said.append(("clean accuracy", _measured(entry["clean"], "accuracy") + among))
        said.append(("gap", f"{100 * entry['gap']:.1f} points"))
    if "unmasked" in entry:
        all_of_them = _measured(entry["unmasked"], "accuracy")
        said.append(("accuracy unmasked", f"{all_of_them}, among all of the run's classes"))
    return said


def _measured(share: Record, key: str) -> str:
    low, high = share["ci95"]
    return (
        f"{percent(share[key])} (95 % interval {percent(low)} to {percent(high)}) of "
        f"{share['images']:,} images"
    )


def protocol(entry: Record) -> str:
    """In one line what every figure of it must be read with."""
    parts = [title(entry), f"{entry['images_per_cell']:,} images a cell", entry["preprocessing"]]
    parts += entry.get("partial", [])
    if "library" in entry:
        parts.append(f"{entry['library']} {entry['version']}")
    parts += [f"checkpoint {entry['checkpoint']}", entry["precision"]]
    return "; ".join(parts)


def notes(entry: Record) -> list[str]:
    """What a reader must be told beside the figures."""
    said = [COMPARES_NOT] if entry["source"] == "generated" else []
    if "partial" in entry:
        said.append(f"Partial: {listed(entry['partial'])}.")
    if skipped := sum(cell.get("skipped", 0) for cell in _cells(entry)):
        said.append(f"{skipped} damaged files were left out.")
    return said


def _cells(entry: Record) -> list[Record]:
    if "accuracy" in entry:
        return [entry["accuracy"]]
    return [cell for row in entry["cells"].values() for cell in row.values()]


def table(entry: Record) -> Record:
    """Errors by corruption (rows) and severity; their mean; CE where there is one."""
    found = by_severity(entry["cells"], mean=entry["corruptions"], ce=entry.get("ce", {}))
    return {**found, "normalised": "ce" in entry}


def command(view: RunView, entry: Record) -> str:
    place = entry["source"]
    words = [*view.evaluated(entry), "--shift", f"{entry['shift']}={place}"]
    if "mean_error_19" in entry:
        words += ["--corruptions", "19"]
    if "cells" in entry and len(severities := table(entry)["severities"]) < 5:
        words += ["--severities", *severities]
    if entry.get("limit"):
        words += ["--limit", str(entry["limit"])]
    if entry.get("lacking"):
        words.append("--partial")
    return shlex.join(words)
