"""Decoded copies of images on the disk: what a store holds, goes on with, leaves out."""

import json
import os
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gratis.data import store as stores
from gratis.data.listing import listed
from gratis.data.store import Files, Store, no_larger
from gratis.data.streamed import Keeping
from tests.test_streamed import tree

__all__ = ["tree"]  # a fixture, asked for by name


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("chunk", [5, 24, 100])
def test_a_store_holds_each_file_decoded_and_shrunk(tree: Path, tmp_path: Path, chunk: int) -> None:
    listing = listed(tree, "train")
    order = torch.randperm(len(listing))
    store = Store(listing, order, tmp_path / "cache", "24", no_larger(24), chunk=chunk)
    store.fill(2)
    assert store.errors == {}
    for place in range(len(listing)):
        with Image.open(listing.paths[order[place]]) as image:
            side = min(24, *image.size)
            size = tuple(round(side * length / min(image.size)) for length in image.size)
            expected = np.asarray(image if min(image.size) <= 24 else image.resize(size, 3))
        assert np.array_equal(store.image(place), expected)
        assert np.array_equal(Files(listing, order).image(place).shape[2:], [3])


def test_an_interrupted_store_goes_on_where_it_was(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = listed(tree, "train")
    made = []

    def store() -> Store:
        def shrunk(image: Image.Image) -> Image.Image:
            made.append(image.size)
            if len(made) == 24 + 9:  # the sample that tells the room needed, then in chunk 1
                raise RuntimeError("out of memory, say")
            return image

        return Store(listing, torch.arange(24), tmp_path, "all", shrunk, chunk=8)

    with pytest.raises(RuntimeError, match="memory"):
        store().fill(1)
    first = store().directory / "00000.u8"
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(stores, "SAMPLE", 1)
    made[:] = []
    store().fill(1)
    assert len(made) == 1 + 16  # a sample, and the two chunks that were not whole
    assert first.stat().st_mtime_ns == before
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".json"] * 3 + [".u8"] * 3
    made[:] = []
    store().fill(1)
    assert not made
    assert np.array_equal(store().image(23), Files(listing, torch.arange(24)).image(23))


def test_processes_that_fill_a_store_together_begin_elsewhere(tree: Path, tmp_path: Path) -> None:
    listing = listed(tree, "train")
    begun = []
    for rank in range(3):
        store = Store(listing, torch.arange(24), tmp_path / f"{rank}", "24", no_larger(24), chunk=4)
        store._decode = lambda number, pool, rank=rank: begun.append((rank, number))  # type: ignore[method-assign]
        store.fill(1, share=(rank, 3))
    assert [[n for r, n in begun if r == rank] for rank in range(3)] == [
        [0, 1, 2, 3, 4, 5],
        [2, 3, 4, 5, 0, 1],
        [4, 5, 0, 1, 2, 3],
    ]


def test_a_few_images_are_not_paid_for_with_all(tree: Path, tmp_path: Path) -> None:
    kept = Keeping(tree, tmp_path / "cache")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(stores, "CHUNK", 4)
        patched.setattr(Store.__init__, "__defaults__", (4, None))
        few, _ = kept.training((24,), 16, limit=6)
        assert len(list(kept.directory.glob("*/*.u8"))) == 2
        every, _ = kept.training((24,), 16, None)
    assert torch.equal(few.pixels(slice(None)), every.pixels(slice(6)))
    assert set(every.y.tolist()) == {0, 1, 2}


def test_damaged_files_are_left_out_of_every_phase(tree: Path, tmp_path: Path) -> None:
    damage(tree / "train" / "bee" / "3.png")
    kept = Keeping(tree, tmp_path / "cache")
    for stored in ((24, "files"), ("files", 24)):
        images, sources = kept.training(stored, 16, None)
        assert images.skipped == ("train/bee/3.png",)
        assert len(images) == 23
        assert images.y.bincount().tolist() == [8, 7, 8]
        for source in sources.values():
            squares = replace(images, source=source).pixels(slice(None))
            assert squares.shape == (23, 3, 16, 16)
    only_files, _ = kept.training(("files",), 16, None)
    with pytest.raises(ValueError, match=r"bee/3\.png cannot be read .* data\.stored"):
        only_files.pixels(slice(None))


def test_many_damaged_files_or_a_class_of_them_are_an_error(tree: Path, tmp_path: Path) -> None:
    for number in range(3):
        damage(tree / "train" / "ant" / f"{number}.png")
    with pytest.raises(ValueError, match=r"3 of 24 files .* cannot be read"):
        Keeping(tree, tmp_path / "cache").training((24,), 16, None)
    damage(tree / "val" / "bee" / "0.png")
    with pytest.raises(ValueError, match="1 of 6 files"):
        Keeping(tree, tmp_path / "cache").test(16, None)


def test_a_tree_without_its_other_half_is_noticed_before_anything_is_decoded(
    tree: Path, tmp_path: Path
) -> None:
    (tree / "val").rename(tree / "valid")
    kept = Keeping(tree, tmp_path / "cache")
    with pytest.raises(ValueError, match="has no folder test or val"):
        kept.training((24,), 16, None)
    assert not kept.directory.exists()


def test_a_full_disk_and_a_place_that_cannot_be_written_are_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be kept in .*data\.cache"):
        Keeping(tree, tmp_path / "file").training((24,), 16, None)
    free = stores.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda where: free)
    with pytest.raises(ValueError, match=r"24 images needs about .* GB .* data\.stored=files"):
        Keeping(tree, tmp_path / "cache").training((24,), 16, None)


def test_a_changed_tree_is_decoded_again(tree: Path, tmp_path: Path) -> None:
    kept = Keeping(tree, tmp_path / "cache")
    before, _ = kept.training((24,), 16, None)
    Image.new("RGB", (30, 30)).save(tree / "train" / "ant" / "new.png")
    after, _ = kept.training((24,), 16, None)
    assert (len(before), len(after)) == (24, 25)
    assert before.fingerprint != after.fingerprint


def test_test_images_lie_on_the_disk_and_are_those_of_a_folder(tree: Path, tmp_path: Path) -> None:
    from gratis.data import load

    for size, resize in ((16, None), (16, 20), (16, 0)):
        kept = Keeping(tree, tmp_path / "cache").test(size, resize)
        held = load("folder", "test", root=tree, image_size=size, resize=resize)
        assert kept.fingerprint == held.fingerprint
        assert torch.equal(kept.y, held.y)


def test_the_index_says_what_is_whole(tree: Path, tmp_path: Path) -> None:
    listing = listed(tree, "train")
    store = Store(listing, torch.arange(24), tmp_path, "24", no_larger(24))
    store.fill(1)
    index = json.loads((store.directory / "00000.json").read_text())
    assert len(index["sizes"]) == 24
    bytes_kept = (store.directory / "00000.u8").stat().st_size
    assert bytes_kept == sum(3 * height * width for height, width in index["sizes"])


def test_stores_of_one_directory_are_filled_side_by_side(tree: Path, tmp_path: Path) -> None:
    """As by two machines whose processes have the same number: none writes the other's file."""
    listing = listed(tree, "train")
    both = threading.Barrier(2, timeout=5)

    def shrunk(image: Image.Image) -> Image.Image:
        if any(tmp_path.glob("*/*.tmp")):  # not for the sample that tells the room needed
            with suppress(threading.BrokenBarrierError):
                both.wait()
        return image

    pair = [Store(listing, torch.arange(24), tmp_path, "all", shrunk) for _ in range(2)]
    with ThreadPool(2) as pool:
        pool.map(lambda store: store.fill(1), pair, chunksize=1)
    for place in range(24):
        assert np.array_equal(pair[0].image(place), Files(listing, torch.arange(24)).image(place))
    assert not list(tmp_path.glob("*/*.tmp"))


def test_what_a_killed_process_left_goes_and_what_one_is_at_stays(
    tree: Path, tmp_path: Path
) -> None:
    listing = listed(tree, "train")
    store = Store(listing, torch.arange(24), tmp_path, "24", no_larger(24))
    store.directory.mkdir(parents=True)
    left, growing = (store.directory / f"00000.{name}.tmp" for name in ("left", "growing"))
    for path in (left, growing):
        path.write_bytes(b"pixels")
    os.utime(left, (0, 0))
    store.fill(1)
    assert not left.exists()
    assert growing.exists()
