"""The same run on other numbers of processes: who may go on with it, and who shares what.

Two processes are started once, between what one process does before and after them.
"""

import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from gratis import (
    FastAdvProp,
    Free,
    GradAlign,
    Learner,
    Linf,
    Natural,
    PGDTraining,
    train,
    training_data,
)
from gratis.asked import question
from gratis.assess import evaluate_run
from gratis.distributed import joined
from gratis.evaluate import robustness
from gratis.nn import add_aux, group_norms, sync_norms
from gratis.passes import Batch
from gratis.run import Run
from tests.dying import dies, final_state
from tests.processes import start_together
from tests.recipes import tiny
from tests.small_net import small_net
from tests.test_parts import learned
from tests.two_processes import (
    CPU,
    SEED,
    WORLD,
    become,
    needs_gloo,
    seen_by,
    whole_batches,
    whole_recipe,
)

pytestmark = [needs_gloo, pytest.mark.slow]
OFTEN, FIVE = "engine.checkpoint_seconds=0", "engine.parts=5"
SHARED = ("evaluation.limit=96", "evaluation.batch_size=5", "evaluation.attacks=[pgd-2,fgsm]")
"""Five pools of images, the last one smaller."""

SYNCED = {
    "natural": Natural(),
    "free": Free(Linf(0.1), replays=2),
    "pgd": PGDTraining(Linf(0.1), steps=2, clean=0.5),
    "shuffled": PGDTraining(Linf(0.1), steps=2, clean=0.5, shuffle=True),
    "fast-advprop": FastAdvProp(Linf(0.1)),
    "gradalign": GradAlign(Linf(0.1)),  # whose loss is of a gradient that passes through norms
}


def shared_recipe():
    return tiny("natural", "engine.device=cpu", *SHARED, passes=1)


def together(rank, port, folder):
    """One of the two processes."""
    become(rank, port)
    found = {}
    with dies():
        train.run(whole_recipe(OFTEN), folder / "two-then-one")
    train.run(whole_recipe(OFTEN, "engine.parts=2"), folder / "one-then-two", resume=True)
    train.run(whole_recipe("engine.parts=4"), folder / "four-parts")

    asked, answer = [], robustness._answer

    def noted(plan, attacked, *more):
        if len(plan) > 1:  # checks while it trains make one attack
            asked.append(len(attacked.x))
        return answer(plan, attacked, *more)

    robustness._answer = noted
    train.run(shared_recipe(), folder / "shared")
    robustness._answer, found["pools"] = answer, asked

    with joined(CPU):
        found["synced"] = {name: synced_learner(name).learner.state() for name in SYNCED}
    mistakes = {
        "five": lambda: train.run(whole_recipe(OFTEN, FIVE), folder / "five", resume=True),
        "taken": lambda: train.run(whole_recipe(), folder / "shared"),
        "batch": lambda: train.run(whole_recipe(f"data.batch_size={20 + 20 * rank}"), folder / "x"),
        "recipe": lambda: train.run(whole_recipe(f"seed={rank}"), folder / "x"),
        "directory": lambda: train.run(whole_recipe(), folder / f"x{rank}"),
        "version": lambda: other_version(rank, folder),
        "images": lambda: other_images(rank, folder),
        "unlabelled": lambda: other_unlabelled(rank, folder),
    }
    for name, mistake in mistakes.items():
        try:
            mistake()
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, folder / f"{rank}.pt")


class synced_learner:  # noqa: N801
    """`learner` after our rows of three whole batches, its norms seeing all processes' images."""

    def __init__(self, name):
        model = small_net().double()
        if SYNCED[name].auxiliary:
            add_aux(model)
        sync_norms(group_norms(model, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        # attacks see each process's own images: only with running statistics all see the same
        self.learner = Learner(model, optimizer, seed=SEED, probe_norm="eval")
        method = SYNCED[name]
        self.exchanged = []
        self.learner.probe = seen_by(self.learner.probe.__call__, self.exchanged)
        for x, y in whole_batches():
            rows = self.learner.processes.rows(method.parts(len(x) // self.learner.processes.world))
            self.learner.fit(method, Batch(x[rows], y[rows]))
        assert not any(self.exchanged), "a probe waited for other processes"


def other_version(rank, folder):
    kept = torch.__version__
    torch.__version__ = f"9.{rank}"
    try:
        train.run(whole_recipe(), folder / "x")
    finally:
        torch.__version__ = kept


def other_images(rank, folder):
    load = training_data.load

    def shifted(*args, **kwargs):
        images = load(*args, **kwargs)
        return replace(images, x=images.x.roll(rank))

    training_data.load = shifted
    try:
        train.run(whole_recipe(), folder / "x")
    finally:
        training_data.load = load


def other_unlabelled(rank, folder):
    keep = training_data.keep_labels

    def shifted(*args, **kwargs):
        images, others = keep(*args, **kwargs)
        return images, others.roll(rank)

    training_data.keep_labels = shifted
    try:
        train.run(whole_recipe("method=trades-1", "data.labels=200"), folder / "x")
    finally:
        training_data.keep_labels = keep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("worlds")
    torch.set_num_threads(1)
    with dies():
        train.run(whole_recipe(OFTEN, "engine.parts=2"), made / "one-then-two")
    with dies():
        train.run(whole_recipe(OFTEN, FIVE), made / "five")
    start_together(together, WORLD, made)
    train.run(whole_recipe(OFTEN), made / "two-then-one", resume=True)
    train.run(whole_recipe("model.norm_groups=2"), made / "one")
    train.run(whole_recipe("engine.parts=4"), made / "four-parts-alone")
    shutil.copytree(made / "shared", made / "alone")
    for name in ("results.json", "per_image.npz"):
        (made / "alone" / name).unlink()
    evaluate_run(Run.open(made / "alone"), question(shared_recipe()))
    return made


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_close(one, other):
    ours, theirs = final_state(one), final_state(other)
    assert ours["updates"] == theirs["updates"] > 80
    for kind in ("model", "averaged", "method"):
        plain = {key.replace(".main_norm", ""): value for key, value in theirs[kind].items()}
        assert plain.keys() == ours[kind].keys()
        for key, value in plain.items():
            assert value.shape == ours[kind][key].shape
        if kind != "method":  # a sign that rounding turns moves a kept perturbation by 2 eps
            for key, value in plain.items():
                torch.testing.assert_close(ours[kind][key], value, rtol=1e-4, atol=1e-5)
    for key in ("metered_passes", "predicted_passes", "papers_passes", "data_passes"):
        assert ours["budget"][key] == theirs["budget"][key], key


@pytest.mark.parametrize(("name", "goes_on"), [("two-then-one", 1), ("one-then-two", 2)])
def test_a_run_goes_on_with_another_number_of_processes(folder, name, goes_on):
    (resumed,) = [r for r in Run.open(folder / name).log() if r["kind"] == "resumed"]
    assert resumed["processes"] == goes_on
    assert 0 < resumed["update"] < 50
    assert 0 <= resumed["lost_updates"] < 50
    assert final_state(folder / name)["parts"] == 2
    assert_close(folder / name, folder / "one")


def test_the_parts_make_the_run_not_the_processes(folder):
    assert_close(folder / "four-parts", folder / "four-parts-alone")
    assert final_state(folder / "four-parts")["parts"] == 4
    weights = [final_state(folder / name)["model"] for name in ("four-parts", "one")]
    moved = [
        not torch.allclose(value, weights[1][key], rtol=1e-3)
        for key, value in weights[0].items()
        if key in weights[1] and value.is_floating_point()
    ]
    assert any(moved), "four parts and two would be the same, and the comparison says nothing"


@pytest.mark.parametrize("name", SYNCED)
def test_synced_norms_see_the_batch_as_one_process_does(found, name):
    torch.set_num_threads(1)
    expected = synced_learner(name).learner.state()
    for f in found:
        state = f["synced"][name]
        assert state["updates"] == expected["updates"] > 0
        for key, value in expected["model"].items():
            torch.testing.assert_close(state["model"][key], value, rtol=1e-11, atol=1e-12, msg=key)


def test_synced_norms_are_not_norms_of_parts(found):
    """The comparison above says something: with norms of each process's own it would not hold."""
    local = learned("natural", Natural(), 2, 1).model.state_dict()
    synced = found[0]["synced"]["natural"]["model"]
    assert any(not torch.allclose(value, synced[key]) for key, value in local.items())


def test_processes_that_cannot_share_the_parts_are_told(found):
    for f in found:
        assert "2 processes cannot share the 5 parts" in f["five"]
        assert f["five"].endswith("start 1, 5")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch", "do not agree on batch size: process 0 has 20, process 1 has 40"),
        ("recipe", "do not agree on recipe: process 0 has .*, process 1 has"),
        ("directory", "do not agree on directory: process 0 has .*x0, process 1 has .*x1"),
        ("version", r"do not agree on version of torch: process 0 has 9\.0, process 1 has 9\.1"),
        ("images", "do not agree on training data"),
        ("unlabelled", "do not agree on unlabelled data"),
    ],
)
def test_processes_that_were_started_differently_are_told(found, folder, name, said):
    for f in found:
        assert re.search(said, f[name])
        assert "start all of them with the same" in f[name]
    assert not [path for path in folder.iterdir() if path.name.startswith("x")]


def test_a_directory_that_is_taken_is_refused_by_all(found):
    assert all("a run directory is never overwritten" in f["taken"] for f in found)


def test_evaluation_is_shared(found, folder):
    shared, alone = (Run.open(folder / name) for name in ("shared", "alone"))
    assert shared.per_image().keys() == alone.per_image().keys()
    for key, value in alone.per_image().items():
        assert (shared.per_image()[key] == value).all(), key
    ours, theirs = (run.results["evaluations"] for run in (shared, alone))
    assert [e["robust"] for e in ours] == [e["robust"] for e in theirs]
    assert [e["images"]["count"] for e in ours] == [96, 96]
    # five pools of 20, the last of 16, in turn; then the first process alone makes the checks
    first, second = (f["pools"] for f in found)
    assert (first[:3], second) == ([20, 20, 16], [20, 20])
    assert not shared.unfinished.exists()


def test_what_others_leave_unanswered_is_answered_at_last(tmp_path, folder):
    """The second of two processes never comes."""
    shutil.copytree(folder / "shared", tmp_path / "run")
    for name in ("results.json", "per_image.npz"):
        (tmp_path / "run" / name).unlink()
    run = Run.open(tmp_path / "run")
    plain = run.recipe
    plain["engine"]["patience_seconds"] = 0.3
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    evaluate_run(run, question(shared_recipe()), share=(0, 2))
    whole = Run.open(folder / "alone").results["evaluations"]
    assert [e["robust"] for e in run.results["evaluations"]] == [e["robust"] for e in whole]
