"""The table of the masking checks, and that docs/flags.md says the same."""

import re
from pathlib import Path

import pytest

from gratis.evaluate.checks.rules import RULES, UNRELIABLE, judged

DOCS = (Path(__file__).parents[1] / "docs" / "flags.md").read_text("utf-8")


def test_every_flag_has_its_paragraph_and_every_paragraph_its_flag() -> None:
    headings = re.findall(r"^## (M\d+) (.+)$", DOCS, re.MULTILINE)
    assert headings == [(rule.id, rule.name) for rule in RULES.values()]
    assert [id for id, _ in headings] == [f"M{i}" for i in range(1, 21)]


@pytest.mark.parametrize("id", RULES)
def test_a_paragraph_states_limits_and_origin(id: str) -> None:
    paragraph = " ".join(DOCS.partition(f"## {id} ")[2].partition("\n## ")[0].split())
    rule = RULES[id]
    limit = "report only" if rule.passes is None else f"Passes {rule.pass_at}"
    assert limit in paragraph
    assert ("fails never" if rule.fails is None else f"fails {rule.fail_at}") in paragraph
    assert f"Origin: {rule.origin}." in paragraph
    assert ("evaluation is unreliable" in paragraph) == (id in UNRELIABLE)


@pytest.mark.parametrize(
    ("id", "count", "images", "verdict"),
    [
        ("M1", 2, 500, "pass"),
        ("M1", 3, 500, "warn"),
        ("M1", 5, 500, "warn"),  # exactly 1 %
        ("M1", 6, 500, "fail"),
        ("M1", 1, 20, "pass"),  # 5 %, but a single image
        ("M1", 2, 100, "warn"),  # 2 %: 9 in 100 such samples would show it at a share of 0.5 %
        ("M1", 3, 100, "fail"),
        ("M1", 51, 10_000, "warn"),
        ("M1", 101, 10_000, "fail"),
        ("M2", 5, 20, "warn"),  # 25 points exactly
        ("M2", 6, 20, "warn"),  # 30 points of 20 images prove little
        ("M2", 8, 20, "fail"),
        ("M3", 1, 500, "pass"),  # 0.2 points
        ("M3", 6, 500, "fail"),
        ("M4", 1, 100, "pass"),
        ("M4", 2, 100, "fail"),
        ("M9", 5, 500, "warn"),
        ("M9", 6, 500, "fail"),
        ("M18", 25, 500, "pass"),
        ("M18", 26, 500, "warn"),
        ("M18", 41, 500, "fail"),
    ],
)
def test_counts_are_judged_by_limit_and_chance(
    id: str, count: int, images: int, verdict: str
) -> None:
    assert judged(RULES[id], 100 * count / images, images) == verdict


@pytest.mark.parametrize(
    ("id", "statistic", "verdict"),
    [
        ("M11", 0.31, "pass"),
        ("M11", 0.3, "warn"),
        ("M11", 0.1, "warn"),
        ("M11", 0.09, "fail"),
        ("M12", 0.3, "report"),
        ("M12", 0.31, "warn"),
        ("M13", 9.0, "report"),
        ("M14", 95.1, "pass"),
        ("M14", 94.9, "fail"),
        ("M15", 0.0, "pass"),
        ("M15", 0.2, "fail"),
        ("M16", 1.0, "pass"),
        ("M16", 100.0, "fail"),
        ("M19", 3.0, "report"),
        ("M20", 1.0, "fail"),
    ],
)
def test_other_statistics_are_judged_by_their_limits(
    id: str, statistic: float, verdict: str
) -> None:
    assert judged(RULES[id], statistic, 500) == verdict
