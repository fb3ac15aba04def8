"""Where an entry of results.json comes from: its images, device, versions. Never imports torch.

The header of results.json says so of the images that the run's recipe reads, and of entries of
earlier versions, which do not say it themselves.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Record = dict[str, Any]


def fingerprint(results: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Of the whole test split whose first images an entry is of."""
    return str(entry.get("fingerprint", results.get("data", {}).get("fingerprint", "")))


def of_own_images(results: Mapping[str, Any], entries: Iterable[Record]) -> list[Record]:
    """The entries that are of the images which the header describes."""
    own = fingerprint(results, {})
    return [entry for entry in entries if fingerprint(results, entry) == own]


def keep_origins(results: Record) -> None:
    """Let each entry say itself what the header says of it, before the header changes."""
    kinds = ("evaluations", "unions", "checks", "shifts", "superseded")
    entries = [entry for kind in kinds for entry in results.get(kind, [])]
    for entry in [*entries, *filter(None, [results.get("detection")])]:
        entry.setdefault("fingerprint", fingerprint(results, {}))
        for key in ("device", "versions"):
            entry.setdefault(key, results[key])


def other_images(results: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    """Which images an entry is of where they are not the header's, in words."""
    own = fingerprint(results, entry)
    others = own != fingerprint(results, {})
    return [f"on test images with fingerprint {own[:16]}"] if others else []


def differences(results: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    """What of an entry's images, device and versions is not as the header says, in words."""
    said = other_images(results, entry)
    if (device := entry.get("device", results["device"])) != results["device"]:
        said.append(f"on {device}")
    versions = entry.get("versions", {}).items()
    if others := [f"{k} {v}" for k, v in versions if v != results["versions"].get(k)]:
        said.append(f"with {', '.join(others)}")
    return said
