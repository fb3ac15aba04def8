"""The checks in this folder run on the stand-in: see tests/test_stand_in_gpu.py."""

from collections.abc import Iterator

import pytest

from tests.stand_in_gpu.gpu import StandInGpu


@pytest.fixture
def gpu() -> Iterator[StandInGpu]:
    with StandInGpu() as standing_in:
        yield standing_in
