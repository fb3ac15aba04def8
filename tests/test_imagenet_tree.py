"""What meets a user of the real ImageNet: its layout, its odd files, and trees that went wrong."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gratis.cli import main
from gratis.data import advice
from gratis.data.listing import listed
from gratis.data.streamed import Keeping
from gratis.recipe import load
from gratis.run import Run
from gratis.training_data import training_data
from tests.imagenet_trees import WNIDS, encoded, write_renditions, write_train, write_val

FEW = WNIDS[:12]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data" / "imagenet"
    write_train(root, FEW)
    write_val(root, FEW)
    return root


# --- odd files


def test_odd_files_are_read_as_they_come(tree: Path, tmp_path: Path) -> None:
    """Grey, CMYK, PNG by another name, turned by EXIF: all in three channels, none turned."""
    paths = list(listed(tree, "train").paths)
    kinds = {"grey": 3, "cmyk": 5, "png": 7, "turned": 11}  # the numbers of such files
    formats = {}
    for kind, number in kinds.items():
        with Image.open(paths[number]) as image:
            formats[kind] = (image.format, image.mode, image.getexif().get(0x0112))
    assert formats == {
        "grey": ("JPEG", "L", None),
        "cmyk": ("JPEG", "CMYK", None),
        "png": ("PNG", "RGB", None),
        "turned": ("JPEG", "RGB", 6),
    }
    images, sources = Keeping(tree, tmp_path / "cache").training((160, "files"), 16, None)
    assert images.skipped == ()
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
    for kind, number in kinds.items():
        kept = [source.image(order.index(number)) for source in sources.values()]
        assert np.array_equal(*kept), "no image is enlarged before it is stored"
        with Image.open(paths[number]) as image:
            assert kept[0].shape == (image.height, image.width, 3), kind


def test_test_images_without_labels_are_passed_over(tree: Path) -> None:
    (tree / "test").mkdir()
    (tree / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(encoded(0))
    assert listed(tree, "test").directory == tree / "val"
    for wnid in FEW:
        shutil.copytree(tree / "val" / wnid, tree / "test" / wnid)
    assert listed(tree, "test").directory == tree / "test"


# --- trees that went wrong


def flattened(root: Path, split: str) -> None:
    for path in sorted((root / split).glob("*/*")):
        path.rename(root / split / path.name)
    for folder in (root / split).glob("*/"):
        folder.rmdir()


def packed(root: Path) -> None:
    for wnid in FEW:
        shutil.rmtree(root / "train" / wnid)
        (root / "train" / f"{wnid}.tar").touch()


def truncated(root: Path) -> None:
    for path in (root / "train").glob("*/*_7.JPEG"):
        path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "val").rename(root / "validation"),
            r"no folder test or val; needed are .*/train/CLASS.* in both; it has train, validation",
        ),
        (
            lambda root: flattened(root, "val"),
            r"val has 0 class folders; .* in no class folder, ILSVRC2012_val_00000001.JPEG, .* "
            r"and 7 more: move each to .*/val/CLASS/\. Their names do not tell .*LOC_val_solution",
        ),
        (
            lambda root: flattened(root, "train"),
            r"train has 0 class folders; .*n00000001_7.JPEG, .*move each to .*/train/CLASS/$",
        ),
        (packed, r"train has 0 class folders; .* n00000005.tar and 7 more: unpack each"),
        (truncated, r"12 of 18 files .*train cannot be read .*Truncated.*; fetch or unpack them"),
        (
            lambda root: [shutil.rmtree(root / "val" / wnid) for wnid in FEW[3:]],
            r"only in train: n00000004, .*n00000008 and 4 more$",
        ),
        (
            lambda root: [path.unlink() for path in (root / "train" / FEW[3]).iterdir()],
            r"without a readable image: n00000004; fill them",
        ),
    ],
)
def test_what_is_wrong_is_said_and_what_to_do(
    tree: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(tree)
    with pytest.raises(ValueError, match=message):
        Keeping(tree, tmp_path / "cache").training((24,), 16, None)


def test_a_root_too_high_or_too_low_is_set_right(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    archive.parent.mkdir(parents=True)
    shutil.copytree(tree, archive)
    for given, right in {
        tree.parent: tree,
        tree / "train": tree,
        tree / "val" / FEW[0]: tree,
        tmp_path / "kaggle" / "ILSVRC": archive,
        tmp_path / "kaggle": archive,
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"in {right}: give it as data.root")):
            listed(given, "train")
    shutil.copytree(tree, tree.parent / "another")
    with pytest.raises(ValueError, match=r"data/another, .*data/imagenet: give the right one as"):
        listed(tree.parent, "train")


def test_the_search_for_a_root_ends_soon(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        (tmp_path / "data" / f"another{number}" / "deep").mkdir(parents=True)
    looked = []
    monkeypatch.setattr(advice, "_is_root", lambda directory: bool(looked.append(directory)))
    monkeypatch.setattr(advice, "MOST_FOLDERS", 8)
    with pytest.raises(ValueError, match="check the root"):
        listed(tree.parent, "train")
    assert len(looked) == 2 + 8


def test_too_few_images_for_a_batch_are_counted(tree: Path, tmp_path: Path) -> None:
    settings = [f"data.root={tree}", f"data.cache={tmp_path / 'cache'}", "data.holdout=5"]
    with pytest.raises(ValueError, match=r"512 images a batch, .* only 13 .* beside the 5"):
        training_data(load("fast-imagenet", settings))


def test_without_a_root_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data\.name=folder lie\? .*data\.root=DIR"):
        training_data(load("fast-imagenet"))


def test_the_documented_command_sorts_the_validation_images(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write_train(root, FEW)
    write_val(root, FEW, sorted_by_class=False)
    lines = [f"ILSVRC2012_val_{n:08d},{w} 85 1 499 272 {w} 9 1 4 2" for n, w in enumerate(FEW, 1)]
    solution = "\n".join(["ImageId,PredictionString", *lines, ""])
    (tmp_path / "LOC_val_solution.csv").write_text(solution)
    text = (Path(__file__).parents[1] / "docs" / "imagenet.md").read_text("utf-8")
    [command] = [
        block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "LOC" in block
    ]
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
    found = listed(root, "test")
    assert found.classes == FEW
    assert [path.name for path in found.paths] == [
        f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 13)
    ]


# --- from the tree to the page


@pytest.mark.slow
def test_fast_imagenet_on_a_thousand_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the root is said of the data, besides what makes it small."""
    count = write_train(tmp_path / "imagenet")
    write_val(tmp_path / "imagenet")
    write_renditions(tmp_path / "imagenet-r")
    small = [
        *("model.name=preact-resnet18", "model.options.width=2", "budget.data_passes=3"),
        # oneDNN 3.13 writes where it must not in 1x1 convolutions of stride 2 and so few channels,
        # channels last, on processors without AVX-512
        "engine.channels_last=false",
        *("data.holdout=100", "data.image_size=24", "data.test_size=32", "check.images=20"),
        "phases=[{share: 6/15, stored: 160, image_size: 16, batch_size: 512}, {share: 6/15}, "
        "{share: 3/15, stored: files, image_size: 32, batch_size: 128}]",
        *("evaluation.attacks=[pgd-1]", "evaluation.limit=100"),
    ]
    root, out = f"data.root={tmp_path / 'imagenet'}", str(tmp_path / "run")
    assert main(["train", "fast-imagenet", "--set", root, *small, "--out", out]) == 0
    said = capsys.readouterr()
    assert "pgd-1 at linf 2/255, 100 test images" in said.out
    assert f"decode {count} images" in said.err

    run = Run.open(out)
    log = run.log()
    assert count == 1500
    updates = [-(-1400 // size) for size in (512, 224, 128)]
    begun = [record["update"] for record in log if record["kind"] == "phase"]
    assert begun == [0, updates[0], sum(updates[:2])]
    assert run.results["budget"]["updates"] == sum(updates)
    assert [record for record in log if record["kind"] == "warning"] == []
    stored = sorted(
        path.name.split("-")[1] for path in (tmp_path / "imagenet/.gratis-cache").iterdir()
    )
    assert stored == ["0", "160", "352"], "the validation images, and two phases' images"
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "stored 352 px" in page

    shift = f"imagenet-r={tmp_path / 'imagenet-r'}"
    assert main(["evaluate", out, "--shift", shift, "--partial"]) == 0
    [found] = Run.open(out).results["shifts"]
    assert (found["shift"], found["classes"]) == ("imagenet-r", 200)
    assert found["accuracy"]["images"] == found["clean"]["images"] == 200
