"""Where an entry of results.json comes from: its images, device, versions. Never imports torch.

The header of results.json says so of the first evaluation, and of entries of earlier versions,
which do not say it themselves.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Record = dict[str, Any]


def fingerprint(results: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Of the whole test split whose first images an entry is of."""
    return str(entry.get("fingerprint", results.get("data", {}).get("fingerprint", "")))


def of_first_images(results: Mapping[str, Any], entries: Iterable[Record]) -> list[Record]:
    """The entries that are of the images which the header describes."""
    first = fingerprint(results, {})
    return [entry for entry in entries if fingerprint(results, entry) == first]


def differences(results: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    """What of an entry's images, device and versions is not as the header says, in words."""
    said = []
    if (own := fingerprint(results, entry)) != fingerprint(results, {}):
        said.append(f"on test images with fingerprint {own[:16]}")
    if (device := entry.get("device", results["device"])) != results["device"]:
        said.append(f"on {device}")
    versions = entry.get("versions", {}).items()
    if others := [f"{k} {v}" for k, v in versions if v != results["versions"].get(k)]:
        said.append(f"with {', '.join(others)}")
    return said
