"""Which entries of results.json replace each other. Never imports torch."""

from typing import Any

from gratis.origins import fingerprint

Entry = dict[str, Any]


def protocol(entry: Entry) -> str:
    """The way of measuring in one line; of the same images such entries replace each other."""
    threat, images = entry["threat"], entry["images"]
    attacks = entry.get("attack") or ", ".join(entry.get("attacks", []))
    if "judged" in entry:
        surrogate = [entry["surrogate"]] if "surrogate" in entry else []
        attacks = " ".join(["checks of", ", ".join(entry["judged"]), *surrogate])
    return (
        f"{attacks} {threat['norm']} {threat['eps']!r} {entry['checkpoint']} "
        f"{images['split']} {images['start']}-{images['start'] + images['count']}"
    )


def merge(results: Entry, kind: str, answer: Entry) -> None:
    """Put `answer` among the results of its kind: in the place of the first entry of the same
    protocol and images, of which none stays, or at the end.
    """
    entries = results.setdefault(kind, [])
    replaced = [place for place, entry in enumerate(entries) if _same(results, entry, answer)]
    first = replaced[0] if replaced else len(entries)
    kept = [entry for place, entry in enumerate(entries) if place not in replaced]
    entries[:] = [*kept[:first], answer, *kept[first:]]


def merge_checks(results: Entry, answer: Entry) -> None:
    """As merge, but a few checks do not replace all of them on the same weights."""
    for entry in results.get("checks", []):
        same = _same(results, entry, answer) and entry["weights"] == answer["weights"]
        if same and (entry["level"], answer["level"]) == ("full", "quick"):
            return
    merge(results, "checks", answer)


def _same(results: Entry, one: Entry, other: Entry) -> bool:
    """Whether two entries answer the same question."""
    alike = protocol(one) == protocol(other)
    return alike and fingerprint(results, one) == fingerprint(results, other)


def supersede(results: Entry, checkpoint: str, update: int) -> None:
    """Put aside what was found of a checkpoint of that name before training went on to `update`.

    It stays under `superseded`, each with the list that it was in, and is not the run's any more.
    """
    for kind in ("evaluations", "unions", "checks", "shifts"):
        entries = results.get(kind, [])
        old = [e for e in entries if e["checkpoint"] == checkpoint and e["update"] < update]
        if old:
            entries[:] = [entry for entry in entries if entry not in old]
            results.setdefault("superseded", []).extend({"of": kind, **entry} for entry in old)
