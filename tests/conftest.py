"""What every test starts from: fixed seeds, one thread, and the same hypothesis examples."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("gratis", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gratis")


@pytest.fixture(autouse=True)
def _fixed_randomness() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
