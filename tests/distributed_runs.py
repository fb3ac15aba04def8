"""Two processes that do everything which the tests of them look at; they are started once."""

import functools
import time

import pytest
import torch

from gratis import Learner, compiling, train
from gratis.batch import Batch, seeded
from gratis.distributed import joined
from gratis.journal import DivergedError
from gratis.methods import METHODS
from tests.dying import dies
from tests.processes import start_together
from tests.recipes import tiny
from tests.two_processes import (
    CPU,
    SETTINGS,
    WORLD,
    Collectives,
    become,
    build,
    learner_for,
    seen_by,
    whole_batches,
    whole_recipe,
)


def fitted(name, groups):
    """(learner, method, what was exchanged when) after our rows of three whole batches."""
    method = build(name)
    learner = learner_for(method, groups)
    processes = learner.processes
    record = {"probes": [], "passes": [], "batches": [], "updates": 0}
    probe = learner.probe

    class Watched:
        __call__ = staticmethod(seen_by(probe.__call__, record["probes"]))
        logits = staticmethod(seen_by(probe.logits, record["probes"]))

    learner.probe = Watched()
    learner.backward = seen_by(learner.backward, record["passes"])
    fit = seen_by(learner.fit, record["batches"])
    for x, y in whole_batches():
        rows = processes.rows(method.parts(len(x) // processes.world))
        record["updates"] += len(fit(method, Batch(x[rows], y[rows])).losses)
    return learner, method, record


# --- what the two processes do


def together(rank, port, folder):
    """One of the two processes."""
    become(rank, port)
    found = {"methods": {}}
    with joined(CPU) as processes:
        assert (processes.rank, processes.world) == (rank, WORLD)
        for name in METHODS:
            learner, method, record = fitted(name, 1)
            weights = {k: v.clone() for k, v in learner.model.named_parameters()}
            local = {k: v.clone() for k, v in learner.model.named_buffers()}
            with Collectives() as settling:
                learner.settle()
            found["methods"][name] = {
                "weights": weights,
                "local": local,
                "state": learner.state(),
                "method": {k: processes.gather(v) for k, v in method.state().items()},
                "sizes": [p.numel() for p in learner.model.parameters()],
                "settling": settling.seen,
                **record,
            }
        found["small"] = small_exchanges(processes)
        with joined(CPU) as again:  # one stands already, and shall not be ended here
            assert again.world == WORLD
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()
    found["train"] = trained(rank, folder)
    torch.save(found, folder / f"{rank}.pt")
    found["lost"] = lost(rank, folder)
    torch.save(found, folder / f"{rank}.pt")


def small_exchanges(processes):
    batch = Batch(*(torch.zeros(5),) * 2, seeded(1, 2, CPU), processes.rank, WORLD)
    batch.gather, batch.peer, batch.peers = processes.gather, processes.rank, WORLD
    ours = torch.arange(5) + 5 * processes.rank
    draws = [batch.draw(ours.double(), lambda like, g: torch.rand(like.shape, generator=g))]
    shuffled = batch.shuffled(ours, 2 * ours)
    mean = [torch.tensor([1.0 + processes.rank, 0.1]), torch.tensor(processes.rank)]
    processes.average(mean)
    learner = learner_for(build("natural"), 1)
    learner.seed = None
    try:
        learner.placed(Batch(torch.rand(4, 1, 6, 5), torch.zeros(4)))
    except ValueError as error:
        unseeded = str(error)
    return {
        "draws": draws,
        "shuffled": list(shuffled),
        "told": processes.told(processes.rank + 3, 0.5),
        "total": processes.total(ours),
        "mean": mean,
        "unseeded": unseeded,
    }


def trained(rank, folder):
    """Runs of the whole trainer, each of which starts and ends the group anew."""
    shown = []

    def progress(*what):
        shown.append(what)

    found = {}
    run = train.run(whole_recipe(), folder / "two", progress=progress)
    found["kind"], found["shown"] = type(run).__name__, len(shown)
    died = whole_recipe("engine.checkpoint_seconds=0")
    with dies():
        train.run(died, folder / "died")
    torch.manual_seed(99)
    train.run(died, folder / "died", resume=True)
    found["compiled"] = compiled(rank, folder)
    for method in ("fast-advprop", "yopo-2-1", "fgsm-rs"):  # 1,233 images: a last batch of 33
        train.run(short_recipe(method), folder / method)
    train.run(early_recipe(), folder / "early")
    mistakes = {
        "odd": tiny("free-3", "data.batch_size=25", "engine.device=cpu"),
        "data": tiny("free-3", "data.name=digit", "engine.device=cpu"),
        "diverged": tiny(
            "natural", "optimizer.learning_rate=1e20", "schedule.shape=constant",
            "engine.device=cpu",
        ),
    }  # fmt: skip
    for name, recipe in mistakes.items():
        try:
            train.run(recipe, folder / name)
        except (ValueError, DivergedError) as error:
            found[name] = str(error)
    return found


def compiled(rank, folder):
    """A run of which each process would decide otherwise, killed and gone on with."""
    own, asked, used = (compiling.decide, torch.compile), [], []

    def decide(learner, x, y):
        asked.append(len(x))
        return compiling.Decision(used=rank == 0, reason="made up")

    def compile_(model, **options):
        used.append(options)
        return model

    compiling.decide, torch.compile = decide, compile_
    recipe = whole_recipe("engine.compile=auto", "engine.checkpoint_seconds=0")
    try:
        with dies():
            train.run(recipe, folder / "compiled")
        first = len(asked), len(used)
        train.run(recipe, folder / "compiled", resume=True)
    finally:
        compiling.decide, torch.compile = own
    return {"first": first, "both": (len(asked), len(used))}


def lost(rank, folder):
    """One process fails alone; how long the other waits, and what it hears."""
    original, calls = Learner.update, [0]

    def fails(self, **kwargs):
        calls[0] += 1
        if rank == 1 and calls[0] == 3:
            raise ArithmeticError("only here")
        return original(self, **kwargs)

    Learner.update = fails
    try:
        train.run(whole_recipe(), folder / "lost")
    except (ArithmeticError, RuntimeError) as error:
        return str(error), time.time()
    finally:
        Learner.update = original
    return None


def short_recipe(method):
    evaluation = ("evaluation.attacks=[pgd-1]", "evaluation.limit=2")
    return tiny(method, "engine.device=cpu", *evaluation, passes=3.9)


def early_recipe(*settings):
    # so many images that the parts of a batch are not answered equally well by chance
    early = ("guard.mode=early-stop", "data.batch_size=200")
    return tiny("free-2", *SETTINGS, *early, *settings, passes=10)


# --- what they leave


@functools.cache
def left_under(base):
    """The folder that both processes filled: once, however many files of tests look at it."""
    made = base / "two"
    made.mkdir()
    start_together(together, WORLD, made)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return left_under(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
