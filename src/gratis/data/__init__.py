"""Labelled images in memory: where they come from and how they become batches."""

from gratis.data.augment import Augmentation, parse_augment
from gratis.data.images import Images, check_match, hold_out
from gratis.data.loader import Loader
from gratis.data.sources import load
from gratis.data.stream_loader import StreamLoader
from gratis.data.streamed import Streamed
from gratis.data.unlabelled import Unlabelled

__all__ = [
    "Augmentation",
    "Images",
    "Loader",
    "StreamLoader",
    "Streamed",
    "Unlabelled",
    "check_match",
    "hold_out",
    "load",
    "parse_augment",
]
