"""Runs, data and attacks on a GPU: tensors lie where they must, and come out as on the CPU."""

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gratis import L1, L2, Free, Learner, Linf, Natural, robust_accuracy, train
from gratis.attacks.apgd import APGD
from gratis.attacks.fab import FAB
from gratis.attacks.square import Square
from gratis.balls import Ball
from gratis.data import StreamLoader
from gratis.data.streamed import Keeping
from gratis.graphs import Graphs
from gratis.passes import Batch
from gratis.recipe import Recipe
from tests import detection_recipes
from tests.dying import assert_same, dies, final_state
from tests.recipes import tiny
from tests.short_attacks import put
from tests.small_net import small_net, some_batches
from tests.stand_in_gpu.gpu import StandInGpu


def recipe(method: str, *settings: str) -> Recipe:
    return tiny(method, "engine.device=cuda", "engine.graph=on", *settings, passes=14)


@pytest.mark.parametrize("method", ["fgsm-rs", "free-3"])
def test_a_run_resumes_as_if_nothing_had_happened(
    gpu: StandInGpu, tmp_path: Path, method: str
) -> None:
    settings = ("data.limit=264", "engine.ema=0.9", "engine.checkpoint_seconds=0")
    settings += ("engine.precision=bf16", "evaluation.attacks=[pgd-1-1]")
    whole = train.run(recipe(method, *settings), tmp_path / "whole")
    with dies(8, (Learner, "fit")):
        train.run(recipe(method, *settings), tmp_path / "died")
    replays = gpu.replays
    run = train.run(recipe(method, *settings), tmp_path / "died", resume=True)
    assert gpu.replays > replays
    assert_same(final_state(run.path), final_state(whole.path))
    decisions = [event for event in run.log() if event["kind"] == "graph"]
    assert [(event["used"], event["apart"]) for event in decisions] == [(True, 0)]


class Queue(Counter[str]):
    """In place of a card's waits: batches queue up, a second each, until the host waits for any."""

    queued = now = 0

    def finish(self, *_: object) -> None:
        self.now, self.queued = self.now + self.queued, 0

    def __setitem__(self, what: str, count: int) -> None:
        self.finish()
        super().__setitem__(what, count)


@pytest.mark.parametrize("every", [0.4, 5.0])
def test_seconds_are_those_of_the_card_to_the_last_batch(
    gpu: StandInGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float
) -> None:
    queue = gpu.waits = Queue()
    fit = Learner.fit

    def queued(*args: object, **kwargs: object) -> object:
        metrics = fit(*args, **kwargs)
        queue.queued += 1
        return metrics

    monkeypatch.setattr(Learner, "fit", queued)
    monkeypatch.setattr(torch.cuda, "synchronize", queue.finish)
    for place in ("clock", "training.loop"):
        monkeypatch.setattr(f"gratis.{place}.time", SimpleNamespace(perf_counter=lambda: queue.now))
    # the last epoch is not whole: its end does not wait for the card
    settings = (f"check.every={every}", "engine.graph=off", "guard.mode=off")
    settings += ("data.limit=264", "budget.passes=13.5")
    run = train.run(recipe("natural", *settings), tmp_path / "run")
    steps = [event for event in run.log() if event["kind"] == "step"]
    assert run.results is not None
    assert run.results["budget"]["seconds"] == steps[-1]["seconds"] == len(steps)
    assert steps[-1]["epoch"] % 1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_what_a_card_saved_goes_on_without_one(
    gpu: StandInGpu, optimizer: type[torch.optim.Optimizer]
) -> None:
    """A checkpoint says nothing of fused steps, and of rates that lie on a card."""
    models = small_net().cuda(), small_net()
    there, here = (Learner(m, optimizer(m.parameters(), 0.1)) for m in models)
    there.learn = Graphs(there).learn
    for x, y in some_batches((8, 8, 8)):
        there.fit(Natural(), Batch(x.cuda(), y.cuda()))
    state = copy.deepcopy(there.state())
    here.load_weights(state)
    group = here.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.1)
    assert not group["fused"]
    here.fit(Natural(), Batch(*some_batches((8,))[0]))


@pytest.mark.parametrize("given", [True, False], ids=["model given", "moved by the user"])
def test_a_loop_of_ones_own_learns_on_the_card(gpu: StandInGpu, given: bool) -> None:
    """The line that is changed is the only one: batches come where the model is, or are moved."""
    ends = []
    for device in ("cpu", "cuda"):
        model = small_net().to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        free = Free(Linf(0.1), replays=2)
        for x, y in free.batches(some_batches(), *([model] if given else [])):
            assert (x.device.type == device) or not given
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_detectors_are_trained_and_judged(gpu: StandInGpu, tmp_path: Path) -> None:
    settings = ("engine.device=cuda", "engine.graph=on", "data.limit=16")
    run = train.run(detection_recipes.tiny("fast-advprop", *settings), tmp_path / "run")
    assert run.results


def test_streamed_images_arrive(gpu: StandInGpu, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for place in ("train/ant", "train/bee", "val/ant", "val/bee"):
        (tmp_path / "tree" / place).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / place / f"{number}.png")
    images, _ = Keeping(tmp_path / "tree", tmp_path / "cache").training((20,), 16, None)
    augment = ["resized-crop", "flip"]
    here, there = (
        StreamLoader(images, 5, seed=3, augment=augment, device=device).epoch(0)
        for device in ("cpu", "cuda")
    )
    for (x, y), (x_there, y_there) in zip(here, there, strict=True):
        assert x_there.is_cuda
        assert torch.equal(x, x_there.cpu())
        assert torch.equal(y, y_there.cpu())


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5), L1(3.0)], ids=["linf", "l2", "l1"])
def test_attacks_find_what_they_find_on_the_cpu(
    gpu: StandInGpu, ball: Ball, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = APGD("apgd-ce", steps=10), APGD("apgd-dlr", "dlr", steps=10), FAB("fab-t", steps=5)
    put(monkeypatch, *short, Square("square", queries=40))
    attacks = ["fgsm", "pgd-5-2", "apgd-ce", "fab-t", "square"]
    attacks += ["apgd-dlr", "cw-5-2"] if ball.norm != "l1" else []
    outcomes = [
        robust_accuracy(model, some_batches((8, 4)), attacks, ball=ball).correct
        for model in (small_net(), small_net().cuda())
    ]
    assert torch.equal(outcomes[0], outcomes[1])
    assert outcomes[0][:, 0].any(), "else there was nothing to attack"
