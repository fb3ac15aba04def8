"""How values are written on the pages, and the templates that write them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gratis.run import Record

NOTHING = "–"  # noqa: RUF001


def percent(accuracy: float) -> str:
    """One decimal; not 100.0 where one image is lacking, which "proved" may not be rounded to."""
    shown = f"{100.0 * accuracy:.1f}%"
    return "99.9%" if shown == "100.0%" and accuracy < 1.0 else shown


def passes(count: float) -> str:
    """Two decimals where there are any, as 36.67 and 160."""
    return f"{count:.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    if seconds < 60.0:
        return f"{seconds:.1f} s" if seconds >= 1.0 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(number: int | None) -> str:
    """A count with its thousands apart; a dash where an older run did not keep it."""
    return NOTHING if number is None else f"{number:,}"


def radius(eps: float) -> str:
    """`eps` as people write it: 8/255 where it is such a fraction, 0.2 where that is shorter."""
    plain = f"{eps:.6g}"
    levels = eps * 255.0
    if len(plain) > 5 and round(levels) > 0 and abs(levels - round(levels)) < 1e-5:
        return f"{round(levels)}/255"
    return plain


def norm(name: str) -> str:
    return {"linf": "L∞", "l2": "L2", "l1": "L1"}.get(name, name)


def threat(record: Record) -> str:
    return f"{norm(record['norm'])}, eps {radius(record['eps'])}"


def images(evaluation: Record) -> str:
    count, split = evaluation["images"]["count"], evaluation["images"]["split"]
    return f"{count} {split} image{'' if count == 1 else 's'}"


def numbers(evaluation: Record) -> str:
    """Which of the split's images: numbers 0 to 499."""
    first, count = evaluation["images"]["start"], evaluation["images"]["count"]
    return f"numbers {first} to {first + count - 1}"


def parameters(values: Record) -> str:
    return ", ".join(
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    )


def protocol(evaluation: Record, data: str) -> str:
    """In one line all that a number must be read with: what is shown where it is pointed at."""
    parts = [
        evaluation["attack"],
        threat(evaluation["threat"]),
        f"{images(evaluation)} of {data}, {numbers(evaluation)}",
        f"checkpoint {evaluation['checkpoint']}",
        parameters(evaluation.get("parameters", {})),
        evaluation.get("precision", ""),
    ]
    return "; ".join(filter(None, parts))


def distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text is not None))


def listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def by_severity(cells: Mapping[str, Mapping[str, Any]], **columns: Mapping[str, Any]) -> Record:
    """A table of corruptions (rows) and their severities, from {corruption: {severity: cell}}.

    columns: what else stands in a row under that name, {corruption: value}.  A cell or value that
    there is none of is None.
    """
    severities = sorted({severity for row in cells.values() for severity in row})
    return {
        "severities": severities,
        "rows": [
            {
                "name": name.replace("_", " "),
                "cells": [row.get(severity) for severity in severities],
                **{head: column.get(name) for head, column in columns.items()},
            }
            for name, row in cells.items()
        ],
    }


def environment() -> Environment:
    """The pages' templates, and the filters that write values as they do."""
    pages = Environment(
        loader=PackageLoader("gratis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    writers = (percent, passes, duration, counted, radius, threat, images, numbers)
    for write in (*writers, parameters, protocol):
        pages.filters[write.__name__] = write
    return pages
