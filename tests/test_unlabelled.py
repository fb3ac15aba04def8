"""Few labels: what is learned from images without any, by whom, and what is refused."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gratis import Learner, Linf, Trades, train
from gratis.assess import trained
from gratis.data import load
from gratis.data.unlabelled import drawn, keep_labels
from gratis.learner import Learner as Engine
from gratis.passes import Batch
from gratis.recipe import from_plain
from gratis.report import write_report
from gratis.setting import build_loaders, planned
from gratis.tasks import NO_LABEL, Classification
from gratis.training_data import training_data
from tests.dying import assert_same, dies, final_state
from tests.recipes import tiny
from tests.small_net import small_net

FEW = ("data.labels=300", "data.holdout=60", "data.batch_size=20")
"""240 labelled images to train on and 997 without labels."""
SHORT = "evaluation={attacks: [pgd-1], limit: 4}"


# --- which labels are kept


LEAKING = {"labels": None}


def relabelled(split, root):
    """Digits; some training labels may be others."""
    images = load("digits", split)
    y = LEAKING["labels"] if split == "train" and LEAKING["labels"] is not None else images.y
    return images.x, y


def test_no_label_outside_the_kept_changes_a_run(tmp_path, monkeypatch):
    images = load("digits", "train")
    kept = {tuple(x) for x in keep_labels(images, 300, seed=0)[0].x.flatten(1).tolist()}
    is_kept = torch.tensor([tuple(x) in kept for x in images.x.flatten(1).tolist()])
    wrong = torch.where(is_kept, images.y, (images.y + 1) % 10)
    monkeypatch.setitem(LEAKING, "labels", wrong)
    # the choice itself goes by class, so the other labels may only be wrong where it is not asked
    monkeypatch.setattr(
        "gratis.training_data.keep_labels",
        lambda given, count, seed: (given.select(is_kept.nonzero()[:, 0]), given.x[~is_kept]),
    )
    user = ("data.name=tests.test_unlabelled:relabelled", SHORT)
    one = train.run(tiny("trades-2", *FEW, *user, passes=5), tmp_path / "one")
    monkeypatch.setitem(LEAKING, "labels", None)
    other = train.run(tiny("trades-2", *FEW, *user, passes=5), tmp_path / "other")
    assert_same(final_state(one.path), final_state(other.path))


# --- the objective


def test_trades_equals_the_flat_formula_and_the_divergence_is_of_all():
    generator = torch.Generator().manual_seed(0)
    x, there = torch.rand(2, 9, 1, 6, 5, generator=generator)
    y = torch.tensor([0, NO_LABEL, 3, NO_LABEL, NO_LABEL, 1, 2, NO_LABEL, 0])
    net = small_net()
    method = Trades(Linf(0.1), steps=1, beta=3.0)

    class Still:
        def __call__(self, x, y, loss=None, norm="main"):
            return torch.zeros_like(x)

        def logits(self, x):
            return torch.zeros(len(x), 4)

    (p,) = method.passes(Batch(x, y), Still())
    loss, _ = p.loss(net, there, y)
    clean, robust = net(x).log_softmax(1), net(there).log_softmax(1)
    labelled = [i for i in range(9) if y[i] != NO_LABEL]
    cross = -sum(clean[i, y[i]] for i in labelled) / len(labelled)
    divergence = sum((clean[i].exp() * (clean[i] - robust[i])).sum() for i in range(9)) / 9
    torch.testing.assert_close(loss, cross + 3 * divergence)
    # no label at all: stability alone, and a number
    loss, _ = p.loss(net, there, torch.full((9,), NO_LABEL))
    torch.testing.assert_close(loss, 3 * divergence)


def test_accuracy_counts_the_labelled_alone():
    task = Classification()
    y = torch.tensor([1, NO_LABEL, 0, NO_LABEL])
    logits = F.one_hot(torch.tensor([1, 1, 1, 0]), 4).float()
    assert task.correct(logits, y).tolist() == [True, False, False, False]
    assert int(task.labelled(y)) == 2
    assert int(task.labelled(torch.rand(4, 3))) == 4
    net = small_net()
    learner = Learner(net, torch.optim.SGD(net.parameters(), 0.1), seed=0)
    x = torch.rand(4, 1, 6, 5)
    metrics = learner.fit(Trades(Linf(0.1), steps=1), Batch(x, y))
    assert metrics.labelled[0].tolist() == 2
    assert metrics.images == [4]


def test_the_logged_accuracy_is_a_share_of_the_labelled(tmp_path, monkeypatch):
    seen = []
    fit = Engine.fit

    def watched(self, *args, **kwargs):
        metrics = fit(self, *args, **kwargs)
        seen.append((int(metrics.correct[0]), int((args[1].y != NO_LABEL).sum())))
        return metrics

    monkeypatch.setattr(Engine, "fit", watched)
    run = train.run(tiny("trades-1", *FEW, SHORT, passes=7), tmp_path / "run")
    (epoch, _) = (record for record in run.log() if record["kind"] == "epoch")
    right, labelled = (sum(column) for column in zip(*seen[:12], strict=True))
    assert labelled == 120
    assert epoch["train_accuracy"] == right / 120
    assert epoch["train_accuracy"] > 0


# --- whole runs


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_prediction_is_the_meter(tmp_path, share):
    recipe = tiny("trades-2", *FEW, f"data.unlabelled.share={share}", SHORT, passes=8)
    budget = train.run(recipe, tmp_path / "run").results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"] <= 8
    assert budget["updates"] == int(8 / (11 / 3) * 12)  # of 12 batches an epoch, 11/3 passes each


def test_a_share_costs_what_labels_alone_cost():
    def plan_of(*settings):
        recipe = tiny("trades-2", *FEW, *settings, passes=8)
        data = training_data(recipe)
        loaders = build_loaders(recipe, data, torch.device("cpu"))
        return planned(recipe, loaders, recipe.build_method()), len(data.training)

    assert plan_of() == plan_of("data.unlabelled.share=0")


def test_share_zero_is_the_labels_alone():
    data = training_data(tiny("fgsm-rs", *FEW, "data.unlabelled.share=0"))
    assert data.unlabelled is None
    assert len(data.training) == 240


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A naturally trained run on the labels alone."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    alone = ("data.unlabelled.share=0", "engine.ema=0.5", SHORT)
    return train.run(tiny("natural", *FEW, *alone, passes=6), out)


def test_pseudo_labels_are_the_models_answers_and_are_logged(tmp_path, teacher):
    recipe = tiny("fgsm-rs", *FEW, f"data.unlabelled.pseudo={teacher.path}", SHORT)
    run = train.run(recipe, tmp_path / "run")
    data = training_data(recipe)
    theirs = from_plain(teacher.recipe)
    model = trained(theirs, data.training, teacher.load_checkpoint()[0]).eval()
    with torch.no_grad():
        expected = model(data.unlabelled.x.float() / 255).argmax(1)
    kept = final_state(run.path)["pseudo"]
    assert torch.equal(kept["labels"], expected)
    (event,) = [record for record in run.log() if record["kind"] == "pseudo-labels"]
    assert event["labels_sha256"] == hashlib.sha256(expected.numpy().tobytes()).hexdigest()
    assert event["of_each_class"] == torch.bincount(expected, minlength=10).tolist()
    assert event["images"] == 997
    assert run.results["pseudo_labels"]["labels_sha256"] == event["labels_sha256"]
    write_report([run], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "997 images without labels were given those that the model of" in page
    assert event["labels_sha256"][:16] in page


@pytest.mark.parametrize("pseudo", [False, True])
def test_resuming_is_bitwise_and_asks_no_teacher_again(tmp_path, teacher, pseudo):
    path = tmp_path / "teacher"
    path.symlink_to(teacher.path)
    labels = [f"data.unlabelled.pseudo={path}"] if pseudo else []
    recipe = tiny("trades-2", *FEW, *labels, SHORT, "engine.checkpoint_seconds=0", passes=7)
    whole = train.run(recipe, tmp_path / "whole")
    with dies(15):
        train.run(recipe, tmp_path / "cut")
    path.unlink()
    cut = train.run(recipe, tmp_path / "cut", resume=True)
    assert_same(final_state(whole.path), final_state(cut.path))
    steps = [[r["loss"] for r in run.log() if r["kind"] == "step"] for run in (whole, cut)]
    assert steps[0] == steps[1]


def folder_of_images(root, count, size):
    generator = np.random.default_rng(0)
    for name in ("one", "two"):
        (root / "train" / name).mkdir(parents=True)
        for number in range(count // 2):
            pixels = generator.integers(0, 256, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{number}.png")
    return root


def test_another_source_is_resized_and_joins_the_rest(tmp_path):
    root = folder_of_images(tmp_path / "more", 30, size=19)
    more = ("data.unlabelled.name=folder", f"data.unlabelled.root={root}")
    data = training_data(tiny("trades-1", *FEW, *more))
    assert data.unlabelled.x.shape == (997 + 30, 1, 8, 8)
    data = training_data(tiny("trades-1", *FEW, *more, "data.unlabelled.limit=7"))
    assert len(data.unlabelled) == 997 + 7
    # every label kept: the source alone
    data = training_data(tiny("trades-1", *more))
    assert (len(data.training), len(data.unlabelled)) == (1297 - 64, 30)


def test_what_is_drawn_of_a_source_is_of_the_seed():
    x = torch.arange(50)
    assert len(drawn(x, 20, seed=1)) == len(set(drawn(x, 20, seed=1).tolist())) == 20
    assert not torch.equal(drawn(x, 20, seed=1), drawn(x, 20, seed=2))
    assert torch.equal(drawn(x, 60, seed=1), x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.labels=0"], "labels=0 must be at least 1"),
        (["data.unlabelled.share=0.5"], "every image has its label; give labels"),
        (["data.labels=300", "data.unlabelled.share=1"], "share=1.0 must be 0 or more, and below"),
        (["data.labels=300", "data.unlabelled.root=x"], "give its name as well"),
        (
            ["data.labels=300", "data.unlabelled={name: digits, limit: 0}"],
            "limit=0 must be at least 1 image",
        ),
    ],
)
def test_a_wrong_section_is_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny("trades-1", *settings)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("fgsm-rs", [], "fgsm-rs cannot learn from images without labels; give .*pseudo"),
        ("advprop-2", [], "advprop cannot learn"),
        ("trades-1", ["guard.mode=early-stop"], "early-stop looks at training batches"),
        ("trades-1", ["data.unlabelled.share=0.99"], "leaves no place for a labelled image"),
        (
            "trades-1",
            ["data.name=tests.test_unlabelled:three_classes", "data.labels=60", "data.holdout=6"],
            "there are no images without labels",
        ),
        ("trades-1", ["data.unlabelled.name=tests.test_unlabelled:coloured"], "3x8x8 .* 1x8x8"),
    ],
)
def test_a_recipe_that_cannot_use_them_is_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        training_data(tiny(method, *FEW, *settings))


def coloured(split, root):
    return torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6) % 2


def test_a_teacher_that_does_not_fit_is_explained(tmp_path, teacher):
    pseudo = f"data.unlabelled.pseudo={teacher.path}"
    few = ("data.name=tests.test_unlabelled:three_classes", "data.labels=30")
    recipe = tiny("fgsm-rs", *few, "data.batch_size=10", "data.holdout=6", pseudo)
    with pytest.raises(ValueError, match=r"data\.unlabelled\.pseudo: .*does not fit"):
        train.run(recipe, tmp_path / "run")
    with pytest.raises(ValueError, match="is no run directory"):
        train.run(tiny("fgsm-rs", *FEW, "data.unlabelled.pseudo=nowhere"), tmp_path / "other")


def three_classes(split, root):
    return torch.zeros(60, 1, 8, 8, dtype=torch.uint8), torch.arange(60) % 3
