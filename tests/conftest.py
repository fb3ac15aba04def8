"""What every test starts from: fixed seeds, one thread, and the same hypothesis examples."""

import functools
import gc
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn import datasets

from gratis.attacks.apgd import APGD
from gratis.attacks.fab import FAB
from gratis.attacks.square import Square
from tests.short_attacks import put

gc.disable()  # importing makes a million objects, all of which stay
settings.register_profile("gratis", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gratis")
os.fsync = os.fstat  # no test can see whether a file is on the disk yet, and waiting takes long
torch.set_num_threads(1)  # for modules' fixtures, which come before each test's own


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # else libraries complain at the end of what was never let go


@functools.cache
def _digits(load=datasets.load_digits):
    """The digits, read once: hundreds of runs train on them, and reading is a sixth of a run."""
    bunch = load()
    for values in (bunch.data, bunch.images, bunch.target):
        values.setflags(write=False)
    return bunch


datasets.load_digits = _digits


@pytest.fixture(autouse=True)
def _fixed_randomness() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def few_queries(monkeypatch):
    """A Square of fewer queries than the standard: most of a standard AutoAttack is Square."""
    put(monkeypatch, Square("square", queries=300))


@pytest.fixture
def few_steps(monkeypatch, few_queries):
    """For what does not depend on how well an attack searches."""
    put(
        monkeypatch,
        APGD("apgd-ce", steps=20),
        APGD("apgd-dlr", "dlr", steps=20),
        APGD("apgd-t", "dlr-t", steps=20),
        FAB("fab-t", steps=10),
        Square("square", queries=40),
    )
