"""The corruptions of Hendrycks 2019 made from clean images, each by a seed of its own."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

COMMON = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Meant for choosing settings with; never part of an mCE."""

SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = "imagecorruptions-imaug"
SMALLEST = 32
"""Pixels of a side; the library takes no smaller images."""

OWN_SEED = ("impulse_noise", "glass_blur")
"""Those which do not draw from numpy's global generator and are given a seed."""

PIXELS_A_PROCESS = 2**28
"""Worth a process of their own: the work of about a minute."""

Picture = npt.NDArray[np.uint8]


def chosen(count: int) -> tuple[str, ...]:
    """The 15 corruptions that a benchmark averages, or all 19."""
    return COMMON if count == len(COMMON) else COMMON + EXTRA


def library() -> str:
    """The version of the library; ValueError says how to get it where it is not there."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError as error:
        raise ValueError(
            f"corruptions are made by {PACKAGE}, which is not installed: "
            "pip install 'gratis[corruptions]'"
        ) from error


def check_size(channels: int, height: int, width: int) -> None:
    """ValueError for images that the library does not take."""
    if channels != 3:
        raise ValueError(
            "corruptions are made of colour images; these are grey, which frost, saturate and "
            "others are not defined for"
        )
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"corruptions are made of images of {SMALLEST} pixels or more a side; these have "
            f"{height}x{width}: blurs and noise have no meaning at that size"
        )


def corrupted(image: Picture, corruption: str, severity: int) -> Picture:
    """An image, uint8 [H, W, 3], as `corruption` leaves it at severity 1 to 5; same shape.

    What it draws is a function of the image's pixels, the corruption and the severity alone.
    numpy's global generator, which the library draws from, is left as it was.

    Differs from ImageNet-C (Hendrycks 2019): that was made once, from images of 224 pixels with
    other versions of the libraries, and stored as JPEG; with the same constants at a smaller
    size the same severity is more severe.
    """
    from imagecorruptions import corrupt  # slow to import

    digest = hashlib.sha256(f"{corruption} {severity} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    seed = int.from_bytes(digest.digest()[:4], "big")
    own = {"seed": seed} if corruption in OWN_SEED else {}
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        found = corrupt(image, severity=severity, corruption_name=corruption, **own)
    finally:
        np.random.set_state(before)
    return np.array(found, np.uint8)


@contextmanager
def makers(pixels: int) -> Iterator[Executor | None]:
    """Processes to call `corrupted` in, as many as so many pixels are worth; None for this one.

    Threads would share numpy's generator, so these are processes, begun afresh: a copy of one
    that holds a GPU may hang.
    """
    count = min(os.cpu_count() or 1, pixels // PIXELS_A_PROCESS)
    if count < 2:
        yield None
        return
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def each_corrupted(images: Sequence[Picture], corruption: str, severity: int) -> list[Picture]:
    """`corrupted` of several images."""
    return [corrupted(image, corruption, severity) for image in images]
