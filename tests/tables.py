"""The papers' tables as they are shipped, how tests make their rows, and a small table."""

from contextlib import contextmanager

import pytest
import yaml

from gratis.recipe import from_plain
from gratis.reproduce import papers
from gratis.reproduce.rows import reproduce
from gratis.reproduce.settings import values

TABLES = {name: papers.read(name) for name in papers.files()}


@contextmanager
def quiet(label):
    yield lambda stage, done, total, note: None


def make(table, folder, scale="smoke", rows=(), given=()):
    if isinstance(table, str):
        table = papers.read(table)
    chosen = table.choose(rows)
    return reproduce(table, scale, folder, rows=chosen, given=given, bar=quiet)


def recipe(table, row, scale="paper", given=()):
    (chosen,) = TABLES[table].choose((row,))
    return from_plain(values(TABLES[table], chosen, scale, given))


def assert_refused(text, before, after, said):
    """The table of this text is read; with `before` become `after` it is answered as `said`."""
    papers.table("t", yaml.safe_load(text))
    assert before in text
    with pytest.raises(ValueError, match=said):
        papers.table("t", yaml.safe_load(text.replace(before, after, 1)))


MINIMAL = """
title: a table
paper: a paper
kind: table
recipe: cifar10
columns: [{name: clean}, {name: pgd-20, measure: pgd-20}]
rows:
  - {name: one, set: [method=free-2], printed: {clean: 12.5}, epochs: 3}
"""
