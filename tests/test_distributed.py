"""Two processes are one: every method, the trainer, what is exchanged, and who writes.

Both processes are started once and do everything that the tests then look at.
"""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from gratis import Learner, Linf, train
from gratis.budget import Meter
from gratis.data import Images, Loader
from gratis.distributed import Processes, joined
from gratis.journal import DivergedError
from gratis.methods import METHODS
from gratis.nn import add_aux, group_norms
from gratis.passes import Batch, seeded
from gratis.run import Run, WatchedRun
from tests.processes import start_together
from tests.recipes import tiny
from tests.test_methods import small_net
from tests.test_train import Killed, assert_same, final_state

WORLD, LOCAL, BATCHES, SEED = 2, 10, 3, 7
CPU = torch.device("cpu")
SETTINGS = ("data.limit=464", "data.batch_size=20", "engine.ema=0.9", "engine.device=cpu")
"""400 images in whole batches: a short one would reach other places of a kept perturbation."""

needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch was built without gloo",
)
pytestmark = needs_gloo


class Collectives(TorchDispatchMode):
    """Notes what is exchanged between processes: (operation, numbers, type)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            first = args[0]
            while isinstance(first, list | tuple):
                first = first[0]
            name = func.name().removeprefix("c10d::")
            self.seen.append((name, first.numel(), str(first.dtype).removeprefix("torch.")))
        return func(*args, **(kwargs or {}))


def seen_by(call, log):
    """`call`, noting in `log` what each call exchanges."""

    def watched(*args, **kwargs):
        with Collectives() as collectives:
            found = call(*args, **kwargs)
        log.append(collectives.seen)
        return found

    return watched


# --- one method on the small network


def build(name):
    numbers = {"pgd": {"steps": 4}}.get(name, {})
    return METHODS[name](**({} if name == "natural" else {"ball": Linf(0.1)}), **numbers)


def learner_for(method, groups):
    model = small_net().double()
    if method.auxiliary:
        add_aux(model)
    group_norms(model, groups)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    return Learner(model, optimizer, seed=SEED)


def whole_batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(BATCHES):
        x = torch.rand(WORLD * LOCAL, 1, 6, 5, generator=generator, dtype=torch.float64)
        yield x, torch.randint(0, 4, (WORLD * LOCAL,), generator=generator)


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


def become(rank, port):
    """Make this a process that torchrun might have started, number `rank` of WORLD."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


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
    original, calls = Learner.update, [0]

    def killed(self, **kwargs):
        calls[0] += 1
        if calls[0] == 50:
            raise Killed
        return original(self, **kwargs)

    Learner.update = killed
    try:
        train.run(died, folder / "died")
    except Killed:
        found["killed"] = True
    Learner.update = original
    torch.manual_seed(99)
    train.run(died, folder / "died", resume=True)
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


def whole_recipe(*settings):
    return tiny("free-3", *SETTINGS, *settings, passes=4.2)


def short_recipe(method):
    evaluation = ("evaluation.attacks=[pgd-1]", "evaluation.limit=2")
    return tiny(method, "engine.device=cpu", *evaluation, passes=3.9)


def early_recipe(*settings):
    # so many images that the parts of a batch are not answered equally well by chance
    early = ("guard.mode=early-stop", "data.batch_size=200")
    return tiny("free-2", *SETTINGS, *early, *settings, passes=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("two")
    start_together(together, WORLD, made)
    return made


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


methods = pytest.mark.parametrize("name", METHODS)


# --- every method


@methods
def test_two_processes_learn_what_one_does_on_their_joined_batch(found, name):
    learner, method, _ = fitted(name, WORLD)
    two = found[0]["methods"][name]
    expected = learner.model.state_dict()
    assert expected.keys() == two["state"]["model"].keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            two["state"]["model"][key], value, rtol=1e-12, atol=1e-13, msg=key
        )
    assert method.state().keys() == two["method"].keys()
    for key, value in method.state().items():
        torch.testing.assert_close(two["method"][key], value, rtol=0, atol=1e-12)
    spent = Meter(**two["state"]["spent"])
    assert WORLD * spent.passes == learner.spent.passes
    assert spent.thirds == BATCHES * sum(method.update_thirds(LOCAL))


@methods
def test_processes_end_bitwise_equal(found, name):
    one, other = (f["methods"][name] for f in found)
    assert_same(one["weights"], other["weights"])
    assert_same(one["state"], other["state"])
    # the comparison says something only where each had statistics of its own
    assert any(not torch.equal(one["local"][k], other["local"][k]) for k in one["local"])


@methods
def test_nothing_is_exchanged_but_one_gradient_an_update(found, name):
    for record in (f["methods"][name] for f in found):
        # with the parameter that keeps DDP from warning
        gradient = ("allreduce_", sum(record["sizes"]) + 1, "float64")
        # DDP's own, beside the gradient: which parameters any process has used
        used = ("allreduce_", len(record["sizes"]) + 1, "int32")
        assert all(seen == [] for seen in record["probes"])
        assert [seen for seen in record["passes"] if seen] == [[gradient, used]] * record["updates"]
        exchanged = [what for seen in record["batches"] for what in seen]
        shuffled = [what for what in exchanged if what not in (gradient, used)]
        assert len(exchanged) - len(shuffled) == 2 * record["updates"]
        # images and labels, once a batch
        wanted = 2 * BATCHES if name == "fast-advprop" else 0
        assert [kind for kind, *_ in shuffled] == ["allgather_"] * wanted
        assert [kind for kind, *_ in record["settling"]] == ["allreduce_"]


def test_probing_methods_were_seen_probing(found):
    counts = {name: len(record["probes"]) for name, record in found[0]["methods"].items()}
    assert counts["natural"] == counts["free"] == counts["yopo"] == counts["fast-advprop"] == 0
    assert counts["fgsm-rs"] == counts["gradalign"] == BATCHES
    assert counts["pgd"] == 4 * BATCHES
    assert counts["trades"] == 11 * BATCHES
    assert counts["advprop"] == 5 * BATCHES


# --- what processes exchange


def test_shuffling_crosses_processes_and_loses_nothing(found):
    one, other = (f["small"]["shuffled"] for f in found)
    whole = torch.cat([one[0], other[0]])
    assert sorted(whole.tolist()) == list(range(10))
    assert whole.tolist() != list(range(10))
    assert (one[0] >= 5).any()
    assert torch.equal(torch.cat([one[1], other[1]]), 2 * whole)
    alone = Batch(*(torch.zeros(10),) * 2, seeded(1, 2, CPU))
    drawn = alone.draw(torch.zeros(10), lambda like, g: torch.rand(like.shape, generator=g))
    assert torch.equal(torch.cat([f["small"]["draws"][0] for f in found]), drawn)
    assert torch.equal(alone.shuffled(torch.arange(10))[0], whole)


def test_small_numbers_are_exchanged(found):
    for f in found:
        assert f["small"]["told"] == (3.0, 0.5)
        assert f["small"]["total"].tolist() == [5, 7, 9, 11, 13]
        assert torch.equal(f["small"]["mean"][0], torch.tensor([1.5, 0.1]))
        assert "give Learner the same seed" in f["small"]["unseeded"]
    assert [f["small"]["mean"][1].item() for f in found] == [0, 1]  # counts are left alone


def of(rank, world):
    """As process number `rank` of `world` sees itself, without any other."""
    processes = Processes(CPU)
    processes.rank, processes.world = rank, world
    return processes


def test_rows_of_a_batch_go_part_by_part():
    three = [of(rank, 3) for rank in range(3)]
    rows = [processes.rows((4, 1)).tolist() for processes in three]
    assert rows == [[0, 1, 2, 3, 12], [4, 5, 6, 7, 13], [8, 9, 10, 11, 14]]
    parts = [processes.part(torch.arange(6)).tolist() for processes in three]
    assert parts == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("images", "sizes"), [(29, [12, 12, 3]), (26, [12, 12]), (24, [12, 12])])
def test_loaders_share_the_batches_of_one(images, sizes):
    x = torch.randint(0, 256, (images, 1, 8, 8), dtype=torch.uint8)
    data = Images(x, torch.arange(images) % 2, ("a", "b"), "noise", "train")

    def loader(**share):
        return Loader(data, 12, seed=5, augment=["crop-1", "flip"], **share)

    def parts(size):
        return size // 3 - 1, 1

    three = [of(rank, 3) for rank in range(3)]
    shared = [loader(take=lambda n, p=p: p.rows(parts(n)), world=3) for p in three]
    assert all(each.batch_sizes == sizes for each in shared)
    for start in (0, 1, len(sizes)):
        batches = list(zip(*(each.epoch(2, start) for each in shared), strict=True))
        assert len(batches) == len(sizes) - start
        for ours, (whole_x, whole_y) in zip(batches, loader().epoch(2, start), strict=False):
            for place, whole in enumerate((whole_x, whole_y)):
                first = [part[place][:-1] for part in ours]
                last = [part[place][-1:] for part in ours]
                joined_parts = torch.cat(first + last)
                assert torch.equal(joined_parts, whole[: len(joined_parts)])


def test_alone_nothing_is_exchanged():
    processes = Processes(CPU)
    x = torch.rand(3)
    assert (processes.rank, processes.world, processes.leads) == (0, 1, True)
    assert processes.gather(x) is x
    assert processes.total(x) is x
    assert processes.told(1, 2) == (1, 2)
    with joined(CPU) as found, found.leader_first():
        assert found.world == 1
    assert not torch.distributed.is_initialized()


# --- the trainer


@pytest.fixture(scope="module")
def one(folder):
    """The same run on one process whose norms see each batch as two would."""
    torch.set_num_threads(1)
    return train.run(whole_recipe(f"model.norm_groups={WORLD}"), folder / "one")


def losses(run):
    return [(r["update"], r["loss"]) for r in run.log() if r["kind"] == "step"]


def test_the_trainer_on_two_processes_is_the_trainer_on_one(folder, found, one):
    two = Run.open(folder / "two")
    ours, theirs = final_state(two.path), final_state(one.path)
    assert ours["updates"] == theirs["updates"] > 80
    for kind in ("model", "averaged"):
        got = {k.replace(".main_norm", ""): v for k, v in theirs[kind].items()}
        assert got.keys() == ours[kind].keys()
        for key, value in got.items():
            torch.testing.assert_close(ours[kind][key], value, rtol=1e-4, atol=1e-5)
    pairs = list(zip(losses(two), losses(one), strict=True))
    assert [a[0] for a, _ in pairs] == [b[0] for _, b in pairs]
    for (_, ours_loss), (_, loss) in pairs:
        assert ours_loss == pytest.approx(loss, rel=1e-4)
    budget, expected = two.results["budget"], one.results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"] == expected["metered_passes"]
    for key in ("papers_passes", "guard_passes", "updates", "data_passes"):
        assert budget[key] == expected[key]
    spent = [[r["spent_passes"] for r in run.log() if r["kind"] == "step"] for run in (two, one)]
    assert spent[0] == spent[1]
    epochs = [
        [r["train_accuracy"] for r in run.log() if r["kind"] == "epoch"] for run in (two, one)
    ]
    assert epochs[0] == pytest.approx(epochs[1], abs=0.01)
    assert two.results["evaluations"][0]["images"]["count"] == 24


def test_only_the_first_process_writes_and_shows(found):
    assert [f["train"]["kind"] for f in found] == ["Run", "WatchedRun"]
    assert found[0]["train"]["shown"] > 0
    assert found[1]["train"]["shown"] == 0


def test_a_killed_run_of_two_ends_bitwise_the_same(folder, found):
    assert all(f["train"]["killed"] for f in found)
    assert_same(final_state(folder / "two"), final_state(folder / "died"))
    whole, died = (Run.open(folder / name) for name in ("two", "died"))
    resumed = [r["update"] for r in died.log() if r["kind"] == "resumed"]
    assert 0 < resumed[0] < 50
    assert resumed[0] % 60  # in mid-epoch
    assert losses(whole) == losses(died)
    assert whole.results["evaluations"][0]["robust"] == died.results["evaluations"][0]["robust"]


def test_kept_perturbations_are_saved_in_the_order_of_processes(folder, one):
    ours, theirs = (final_state(path)["method"]["delta"] for path in (folder / "two", one.path))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 1e-3


@pytest.mark.parametrize("method", ["fast-advprop", "yopo-2-1", "fgsm-rs"])
def test_prediction_is_the_meter_with_a_short_last_batch(folder, found, method):
    run = Run.open(folder / method)
    budget = run.results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"] <= 3.9
    assert 3.9 - budget["metered_passes"] < 0.9
    assert budget["data_passes"] > 1  # the short batch, of 32 images instead of 33, was among them
    last = [r["spent_passes"] for r in run.log() if r["kind"] == "step"][-1]
    assert last == pytest.approx(budget["metered_passes"])


def test_early_stop_looks_at_the_whole_batch(folder, found):
    one = train.run(early_recipe(f"model.norm_groups={WORLD}"), folder / "early-one")
    ours, theirs = (final_state(path) for path in (folder / "early", one.path))
    robust = ours["early_stop"]["previous"]
    assert robust == pytest.approx(theirs["early_stop"]["previous"], abs=1e-9)
    assert 0 < robust < 1
    assert ours["checked"] == theirs["checked"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("odd", "25 images, of all processes together, cannot be divided equally among 2"),
        ("data", "digits"),
        ("diverged", "the loss became"),
    ],
)
def test_mistakes_are_told_by_every_process(found, folder, name, said):
    assert all(said in f["train"][name] for f in found)
    if name != "diverged":
        assert not (folder / name).exists()


def test_a_process_that_fails_alone_keeps_nobody_waiting(found):
    (heard, when), (said, failed) = (f["lost"] for f in found)
    assert said == "only here"
    assert heard
    assert when - failed < 20


def test_a_watched_directory_is_left_alone(tmp_path):
    run = WatchedRun(tmp_path / "run")
    assert not run.has_checkpoint
    run.save_checkpoint("last", {})
    run.set_aside_damaged()
    writer = run.log_writer()
    writer.write({"kind": "step"})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def torchrun(recipe, out, *more):
    """`torchrun ... -m gratis train RECIPE`, started; its output is for `communicate`."""
    written = out.with_suffix(".yaml")
    written.write_text(yaml.safe_dump(recipe.plain()))
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}",
         "-m", "gratis", "train", str(written), "--out", str(out), *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_trains_evaluates_and_reports(folder, found, tmp_path):
    started = torchrun(whole_recipe(), tmp_path / "run")
    stdout, stderr = started.communicate()
    assert started.returncode == 0, stderr
    assert_same(final_state(tmp_path / "run"), final_state(folder / "two"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluations"]
    assert (tmp_path / "run" / "report.html").exists()
    assert stdout.count("report:") == 1
    assert stdout.count("robust %") == 1
    assert stderr.count(": train ") == 1
    assert "reducer.cpp" not in stderr


@pytest.mark.slow
def test_torchrun_killed_in_mid_run_goes_on(tmp_path):
    recipe = whole_recipe("engine.checkpoint_seconds=0", "budget.passes=30", "check.every=5")
    whole = torchrun(recipe, tmp_path / "whole")
    _, stderr = whole.communicate()
    assert whole.returncode == 0, stderr
    log, more = tmp_path / "died" / "log.jsonl", []
    for moment in (0.5, 1.0):
        died = torchrun(recipe, tmp_path / "died", *more)
        before = log.stat().st_size if log.exists() else 0
        while died.poll() is None and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(moment)
        died.terminate()  # torchrun hands it on to its processes, which have no word in it
        died.communicate()
        assert died.returncode != 0, "the run ended before it could be killed"
        more = ["--resume"]
    resumed = torchrun(recipe, tmp_path / "died", "--resume")
    _, stderr = resumed.communicate()
    assert resumed.returncode == 0, stderr
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "died"))
    records = [r for r in Run.open(tmp_path / "died").log() if r["kind"] == "resumed"]
    assert any(r["update"] > 0 for r in records)
