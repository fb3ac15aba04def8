"""Two processes are one: every method, and what is exchanged."""

import pytest
import torch

from gratis.batch import Batch, seeded
from gratis.budget import Meter
from gratis.data import Images, Loader
from gratis.distributed import Processes, joined
from gratis.methods import METHODS
from tests.distributed_runs import fitted, folder, found
from tests.dying import assert_same
from tests.two_processes import BATCHES, CPU, LOCAL, WORLD, needs_gloo, of

__all__ = ["folder", "found"]  # fixtures, asked for by name

pytestmark = needs_gloo
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
