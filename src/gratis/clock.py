"""The clock that training, evaluation and trials are timed by."""

import time

import torch


def seconds(device: torch.device) -> float:
    """Seconds of a clock that only goes on, once `device` has done all that it was given.

    A GPU is given work long before it does it: without waiting for it the last batches, or
    whatever has queued up, would be left out or counted as what comes after.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
