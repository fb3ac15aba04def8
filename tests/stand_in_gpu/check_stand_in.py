"""The stand-in is as strict as a card, and computes what the CPU computes."""

import pytest
import torch

from tests.stand_in_gpu.gpu import StandInGpu


def test_the_outcome_is_the_cpus(gpu: StandInGpu) -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    x = torch.rand(2, 3, 8, 8)
    there = torch.nn.Conv2d(3, 4, 3).cuda()
    there.load_state_dict(layer.state_dict())
    answer = there(x.cuda())
    assert answer.is_cuda
    assert torch.equal(answer.cpu(), layer(x))
    assert gpu.kernels["aten.convolution.default"] == 1


def test_devices_do_not_meet(gpu: StandInGpu) -> None:
    with pytest.raises(RuntimeError, match="two devices"):
        torch.rand(3, device="cuda") + torch.rand(3)


def test_waits_are_counted(gpu: StandInGpu) -> None:
    x = torch.rand(3, device="cuda")
    assert not gpu.waits
    x.sum().item()
    x[x > 0.5].cpu()
    torch.rand(3).cuda()
    x[torch.tensor([0, 2])]
    torch.rand(3).pin_memory().to("cuda", non_blocking=True)
    assert gpu.waits == {
        "a value read": 1,
        "a tensor fetched": 1,
        "a tensor sent": 2,
        "a shape that depends on values": 1,
    }


def test_a_recording_computes_nothing_and_its_replay_all(gpu: StandInGpu) -> None:
    x = torch.ones(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = x.add_(1) * 2
    assert x.tolist() == [1, 1, 1]
    for passed in (2, 3):
        graph.replay()
        assert x.tolist() == [passed] * 3
        assert doubled.tolist() == [2 * passed] * 3


def test_memory_freed_in_a_recording_is_used_again_there(gpu: StandInGpu) -> None:
    """As a card's allocator does: what is not held on to holds something else after a replay."""
    x = torch.ones(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        place = (x + 1).data_ptr()
        after = x + 2
    assert after.data_ptr() == place


def test_replays_draw_anew_and_as_without_a_graph(gpu: StandInGpu) -> None:
    generator = torch.Generator("cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = [torch.rand(4, generator=generator, device="cuda") for _ in range(2)]
    for seed in (1, 2):
        generator.manual_seed(seed)
        drawn = [torch.rand(4, generator=generator, device="cuda") for _ in range(2)]
        generator.manual_seed(seed)
        graph.replay()
        assert torch.equal(torch.stack(recorded), torch.stack(drawn))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(3).cuda(),
        lambda x: torch.cuda.synchronize(),
    ],
    ids=["read", "fetch", "count", "bring", "wait"],
)
def test_a_recording_forbids(gpu: StandInGpu, forbidden: object) -> None:
    x = torch.ones(3, device="cuda")
    stream = torch.cuda.current_stream()
    try:
        with pytest.raises(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            forbidden(x)  # type: ignore[operator]
    finally:
        torch.cuda.set_stream(stream)
