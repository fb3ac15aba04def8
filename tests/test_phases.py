"""Runs whose images, batches and rates change on the way: Wong 2020's progressive resizing."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gratis import train
from gratis.budget import Plan, plan, plan_phases
from gratis.recipe import load
from gratis.report.runs import run_views
from gratis.run import Run
from gratis.setting import learner
from gratis.training import Training
from gratis.training_data import training_data
from tests.dying import assert_same, dies, final_state
from tests.recipes import tiny

PHASES = (
    "phases=[{share: 0.5, stored: 20, image_size: 8, batch_size: 10}, {share: 0.25}, "
    "{share: 0.25, stored: files, image_size: 16, batch_size: 6}]"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for label, colour in (("red", 0), ("green", 1)):
            folder = tmp_path / "tree" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 90, (24, 30, 3), dtype=np.uint8)
                pixels[..., colour] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "tree"


def phased(tree: Path, method: str = "fgsm-rs", *settings: str):
    return tiny(
        method,
        "data.name=folder",
        f"data.root={tree}",
        "data.workers=1",
        "data.stored=24",
        "data.image_size=12",
        "data.test_size=16",
        "data.batch_size=8",
        "data.holdout=4",
        "data.augment=[resized-crop, flip]",
        "model.name=preact-resnet18",
        "model.options={width: 2}",
        "budget.data_passes=4",
        "evaluation.limit=null",
        "evaluation.attacks=[pgd-1]",
        "check.images=4",
        PHASES,
        *settings,
    )


# --- plans


def one_by_one(sizes, ends, cost, data_passes=None, budget_thirds=None) -> tuple[int, int]:
    """Updates and thirds of a phased run, batch by batch."""
    updates = thirds = 0
    for epoch in range(ends[-1]):
        batches = sizes[sum(end <= epoch for end in ends)]
        for number, size in enumerate(batches):
            if data_passes is not None and epoch + (number + 1) / len(batches) > data_passes + 1e-9:
                return updates, thirds
            for third in cost(size):
                if budget_thirds is not None and thirds + third > budget_thirds:
                    return updates, thirds
                updates, thirds = updates + 1, thirds + third
    return updates, thirds


SIZES = [[10, 10], [8, 8, 4], [6, 6, 6, 2]]


@pytest.mark.parametrize("cost", [lambda n: (5 * n,), lambda n: (3 * n,) * 4])
@pytest.mark.parametrize(
    ("data_passes", "ends"),
    [
        (4, [2, 3, 4]),
        (5, [2, 4, 5]),
        (3.5, [2, 3, 4]),
        (1.5, [1, 2, 2]),
        (1, [0, 1, 1]),
        (0.5, [0, 1, 1]),
    ],
)
def test_a_phased_plan_is_the_sum_of_its_batches(cost, data_passes, ends) -> None:
    shares = (0.5, 0.25, 0.25)
    found = plan_phases(SIZES, shares, cost, data_passes=data_passes)
    assert [end for end, *_ in found.ends] == ends
    assert (found.updates, found.thirds) == one_by_one(SIZES, ends, cost, data_passes)
    paid = plan_phases(SIZES, shares, cost, budget_thirds=found.thirds)
    assert (paid.updates, paid.thirds) == one_by_one(SIZES, ends, cost, None, found.thirds)
    assert paid.thirds <= found.thirds
    for each in (found, paid):
        assert each.updates > 0
        passes = [0.0, *(done for *_, done in each.ends)]
        assert passes == sorted(passes)
        assert each.place(each.updates) == pytest.approx(each.updates), (
            "the schedule comes to an end"
        )


def test_one_phase_is_a_run_without() -> None:
    def cost(size: int) -> tuple[int]:
        return (5 * size,)

    single = plan(SIZES[1], cost, data_passes=2.4)
    found = plan_phases([SIZES[1]], [1.0], cost, data_passes=2.4)
    assert (found.updates, found.thirds) == (single.updates, single.thirds)
    assert [found.place(update) for update in range(8)] == pytest.approx(list(range(8)))


def test_the_place_in_a_phased_run_is_by_images_seen() -> None:
    found = plan_phases(SIZES, (0.5, 0.25, 0.25), lambda n: (3 * n,), data_passes=4)
    assert found.updates == 2 * 2 + 3 + 4
    epochs = [0, 0.5, 1, 1.5, 2, 2 + 1 / 3, 2 + 2 / 3, 3, 3.25, 3.5, 3.75, 4]
    assert [found.place(u) for u in range(12)] == pytest.approx([e / 4 * 11 for e in epochs])
    assert [found.phase(epoch) for epoch in range(4)] == [0, 0, 1, 2]
    assert Plan(5, 0).phase(3) == 0


def test_the_papers_rates_and_phases() -> None:
    """Wong 2020's ImageNet configuration: rate 0 at epoch 0, 0.4 at 1, 0.04 at 6, 0.004 at 12."""
    recipe = load("fast-imagenet")
    assert [(s.stored, s.image_size, s.batch_size) for s in recipe.stages] == [
        (160, 128, 512),
        (352, 224, 224),
        ("files", 288, 128),
    ]
    sizes = [[size] * (1_280_167 // size) for size in (512, 224, 128)]
    shares = [phase.share for phase in recipe.phases]
    found = plan_phases(sizes, shares, lambda n: (5 * n,), data_passes=15)
    assert [end for end, *_ in found.ends] == [6, 12, 15]
    engine = learner(recipe, torch.nn.Linear(2, 2), found)
    first = len(sizes[0])
    at = {1: first, 6: 6 * first, 12: found.ends[1][1], 15: found.updates}
    for epoch, rate in {1: 0.4, 6: 0.04, 12: 0.004, 15: 0.0004}.items():
        assert engine.rate(at[epoch] - 1) == pytest.approx(rate, rel=2e-3)
    middle = 6 * first + 3 * len(sizes[1])
    assert engine.rate(middle) == pytest.approx(0.022, rel=1e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("phases=[{share: 0.5}]", "add up to 0.5"),
        ("phases=[{share: 1.5}, {share: -0.5}]", "share"),
        ("phases=[{share: 1, size: 3}]", "size"),
        ("schedule.shape=knots", "needs them"),
        ("schedule={shape: knots, knots: [[0, 1], [0.5, 2], [1, 0]]}", "shares of learning_rate"),
        ("schedule={shape: knots, knots: [[0, 1], [0.5, 1]]}", "rise from 0 to 1"),
        ("schedule={shape: cosine, knots: [[0, 1], [1, 1]]}", "no other has a use"),
        ("data.stored=0", "at least 1 pixel"),
        ("data.image_size=null", "give both"),
        ("data.labels=10", "images in memory"),
    ],
)
def test_what_makes_no_sense_is_refused(tree: Path, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phased(tree, "fgsm-rs", setting)


def test_phases_of_images_in_memory_may_change_their_batches_alone() -> None:
    with pytest.raises(ValueError, match=r"set data\.stored"):
        tiny("natural", "phases=[{share: 1, image_size: 4}]")
    assert [s.batch_size for s in tiny("natural", "phases=[{share: 1, batch_size: 4}]").stages] == [
        4
    ]


# --- runs


@pytest.mark.parametrize("method", ["fgsm-rs", "free-2", "fast-advprop", "yopo-2-2"])
def test_images_and_batches_follow_the_phases(tree: Path, tmp_path: Path, method: str) -> None:
    seen = []
    notes: list[str] = []

    class Watched(Training):
        def _learn(self, batch) -> None:
            seen.append((self.epoch, tuple(batch.x.shape)))
            super()._learn(batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "Training", Watched)
        run = train.run(
            phased(tree, method), tmp_path / "run", progress=lambda *shown: notes.append(shown[-1])
        )
    for number in (1, 2, 3):
        assert any(note.startswith(f"phase {number} of 3, loss") for note in notes)
    batches = {epoch: [shape for e, shape in seen if e == epoch] for epoch in range(4)}
    assert batches[0] == batches[1] == [(10, 3, 8, 8)] * 2
    assert batches[2] == [(8, 3, 12, 12)] * 2 + [(4, 3, 12, 12)]
    assert batches[3] == [(6, 3, 16, 16)] * 3 + [(2, 3, 16, 16)]
    budget = run.results["budget"]
    begun = [record for record in run.log() if record["kind"] == "phase"]
    assert [(record["phase"], record["epoch"]) for record in begun] == [(1, 0), (2, 2), (3, 3)]
    shown = run_views([run])[0].phases
    batches_seen = [len(phase.steps) / len(shown[0].steps) for phase in shown]
    assert batches_seen == pytest.approx([1, 3 / 4, 4 / 4]), "as many updates of each batch"
    assert shown[-1].reach("spent_passes")[1] == pytest.approx(budget["metered_passes"])
    assert budget["predicted_passes"] == budget["metered_passes"]
    assert budget["data_passes"] == 4
    [entry] = run.results["evaluations"]
    assert entry["images"]["count"] == 6


@pytest.mark.parametrize("at", [3, 9, 19])
def test_a_run_that_died_in_any_phase_goes_on_bitwise(tree: Path, tmp_path: Path, at: int) -> None:
    recipe = phased(tree, "free-2", "engine.checkpoint_seconds=0")
    whole = train.run(recipe, tmp_path / "whole")
    with dies(at):
        train.run(recipe, tmp_path / "died")
    again = train.run(recipe, tmp_path / "died", resume=True)
    ours, theirs = ([len(phase.steps) for phase in v.phases] for v in run_views([whole, again]))
    assert ours == theirs
    assert_same(final_state(whole.path), final_state(tmp_path / "died"))


def test_held_out_images_are_cut_as_test_images(tree: Path) -> None:
    data = training_data(phased(tree))
    assert data.held_out.x.shape == (4, 3, 16, 16)
    assert len(data.training) == 20


def test_a_finished_run_is_evaluated_again_from_its_directory(tree: Path, tmp_path: Path) -> None:
    from gratis.asked import question
    from gratis.assess import evaluate_run
    from gratis.recipe import from_plain

    train.run(phased(tree), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    [entry] = evaluate_run(run, question(from_plain(run.recipe)))
    assert entry == run.results["evaluations"][0]


@pytest.mark.data
def test_a_part_of_imagenette_trains_as_imagenet_would(tmp_path: Path) -> None:
    """Real JPEGs of ImageNet's layout, one of them cut off, by the recipe for ImageNet."""
    source = Path(os.environ.get("GRATIS_DATA", "/nowhere")) / "imagenette2-160"
    if not source.is_dir():
        pytest.skip("needs real photographs: set GRATIS_DATA to what holds imagenette2-160")
    root = tmp_path / "part"
    for split, count in (("train", 24), ("val", 6)):
        for folder in sorted((source / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                shutil.copy(path, root / split / folder.name)
    first = next(iter(sorted(root.glob("train/*/*"))))
    first.write_bytes(first.read_bytes()[:2000])
    recipe = load(
        "fast-imagenet",
        [
            f"data.root={root}",
            "data.workers=1",
            "data.holdout=20",
            "data.stored=40",
            "data.image_size=32",
            "data.test_size=40",
            "model.name=preact-resnet18",
            "model.options.width=4",
            "engine.channels_last=false",  # as in test_imagenet_tree
            "phases=[{share: 0.5, stored: 32, image_size: 24, batch_size: 64}, "
            "{share: 0.5, batch_size: 32}]",
            "budget.data_passes=4",
            "evaluation.attacks=[pgd-2]",
        ],
    )
    run = train.run(recipe, tmp_path / "run")
    warnings = [record for record in run.log() if record["kind"] == "warning"]
    assert [str(first.relative_to(root)) in record["message"] for record in warnings] == [True]
    losses = [record["loss"] for record in run.log() if record["kind"] == "step"]
    assert len(losses) == 2 * 4 + 2 * 7  # 219 images, 64 and then 32 a batch
    assert np.mean(losses[-7:]) < np.mean(losses[:4])
    assert run.results["evaluations"][0]["images"]["count"] == 60
