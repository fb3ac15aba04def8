"""A tree of ImageNet's true layout: its names, its thousand classes, the oddities of its files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = tuple(f"n{number:08d}" for number in range(1, 1001))
SIZES = ((50, 38), (38, 50), (33, 33), (64, 40), (120, 34))  # width, height
DESCRIPTION = 0x010E  # EXIF's number of a text
ROTATED = 6  # EXIF's word for a camera that was held upright


def encoded(number: int, kind: str = "plain") -> bytes:
    """Image `number` as a file holds it; kind: plain, grey, cmyk, png, turned (by EXIF),
    or scratched (in its EXIF).
    """
    draw = np.random.default_rng(number)
    width, height = SIZES[number % len(SIZES)]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = draw.integers(0, 256, 3)
    pixels[: height // 2] = draw.integers(0, 256, 3)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    if kind in ("turned", "scratched"):
        exif[0x0112] = ROTATED
    if kind == "scratched":
        exif[DESCRIPTION] = "x" * 299
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    file = io.BytesIO()
    image.convert(mode).save(file, "PNG" if kind == "png" else "JPEG", exif=exif)
    content = file.getvalue()
    # a text said to be longer than its file
    scratched = content.replace(bytes((0, 0, 1, 44)), bytes((0, 0, 255, 44)))
    return scratched if kind == "scratched" else content


def write_train(root: Path, wnids: tuple[str, ...] = WNIDS) -> int:
    """ROOT/train/WNID/WNID_K.JPEG, one or two a class; returns how many."""
    odd = {
        3: "grey",
        5: "cmyk",
        7: "png",
        11: "turned",
        31: "scratched",
    }  # the real one has some of each
    total = 0
    for place, wnid in enumerate(wnids):
        (root / "train" / wnid).mkdir(parents=True)
        for k in range(1, 2 + (place % 2 == 0)):
            content = encoded(total, odd.get(total % 100, "plain"))
            (root / "train" / wnid / f"{wnid}_{6 + k}.JPEG").write_bytes(content)
            total += 1
    return total


def write_val(root: Path, wnids: tuple[str, ...] = WNIDS, *, sorted_by_class: bool = True) -> None:
    """ROOT/val/WNID/ILSVRC2012_val_*.JPEG, one a class; or all in ROOT/val, as they are packed."""
    for number, wnid in enumerate(wnids, 1):
        folder = root / "val" / wnid if sorted_by_class else root / "val"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(encoded(10_000 + number))


def write_renditions(root: Path, wnids: tuple[str, ...] = WNIDS[::5]) -> None:
    """ImageNet-R's ROOT/WNID/*.jpg, one a class of 200."""
    for number, wnid in enumerate(wnids):
        (root / wnid).mkdir(parents=True)
        (root / wnid / f"sketch_{number}.jpg").write_bytes(encoded(20_000 + number))
