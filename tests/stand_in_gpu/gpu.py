"""A GPU that is none: tensors say "cuda", their memory is the host's, the CPU computes.

Run under `build.environment`, and around what is to be tried:

    with StandInGpu() as gpu: ...

PyTorch's own code decides all that it decides on a card: which tensors lie where, what its
allocator hands out, what a graph records and when. Only kernels are replaced, by the CPU's on the
same memory. It is as strict as a card where that can be told: tensors on different devices do
not meet, and while a graph is recorded nothing is computed, nothing from the host's memory is
copied and nothing is waited for. Not shown: speed, rounding of a card's kernels, kernels that
do not exist there, races between streams.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
NAME = "stand-in"
"""What runtime.c calls its device."""

MEMORY = {
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default),
    *(aten.new_empty.default, aten.new_empty_strided.default, aten.resize_.default),
    *(aten.set_.default, aten.set_.source_Tensor, aten.set_.source_Storage),
    *(aten.set_.source_Storage_storage_offset, aten.record_stream.default),
    *(aten.detach.default, aten.alias.default, aten.lift_fresh.default),
    *(aten._unsafe_view.default, aten._reshape_alias.default),
    *(aten.is_pinned.default, aten._pin_memory.default, aten._local_scalar_dense.default),
}
"""What launches no kernel: PyTorch's own code for a card does it."""
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""Take indices from the host as well, as on a card."""

COUNTED = {aten.nonzero.default, aten.masked_select.default, aten.bincount.default}
"""Wait for the card to say how large their outcome is."""

BEGIN, REPLAY = torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.replay
Kernel = Callable[[], None]
Draws = dict[int, tuple[torch.Generator, int]]
"""By its address, for PyTorch wraps it anew each time: a generator, and how often it was drawn
from."""


class StandInGpu(TorchDispatchMode):
    """kernels: how often each ran or was recorded.  waits: for the host's sake, by kind.
    replays: of graphs.
    """

    def __init__(self) -> None:
        super().__init__()
        # on a real card's memory the CPU's kernels would crash
        assert torch.cuda.get_device_name() == NAME, "run under build.environment"
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.replays = 0
        self.random = _Random()
        self.recorded: list[Kernel] = []
        self.graphs: dict[torch.cuda.CUDAGraph, tuple[list[Kernel], Draws]] = {}
        torch.backends.cudnn.enabled = False  # its operations have no counterpart on CPUs
        self._stand_in_for_graphs(torch.cuda.CUDAGraph)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = _tensors((args, kwargs))
        place = kwargs.get("device")
        if not any(t.is_cuda for t in given) and not _is_cuda(place):
            return func(*args, **kwargs)
        self.kernels[str(func)] += 1
        if args and isinstance(args[-1], torch.Generator):  # most take it by name
            *args, kwargs["generator"] = args
        if func is aten._local_scalar_dense.default:
            self.waits["a value read"] += 1
        if func in MEMORY or func.is_view:
            return func(*args, **kwargs)
        place = self._place(func, args, place)
        self._check(func, given, place, _later(args, kwargs, given))
        if torch.cuda.is_current_stream_capturing():
            return self._record(func, args, kwargs, place)
        twins = _Twins(place)
        args, kwargs = twins.of(args), twins.of(kwargs)
        with self.random.drawing(kwargs) if _draws(func) else nullcontext():
            return twins.back(func(*args, **kwargs))

    def _place(self, func: Any, args: tuple[Any, ...], place: Any) -> torch.device:
        if func is aten.copy_.default:
            return args[0].device
        if func is aten._to_copy.default and place is not None:
            return torch.device(place)
        return torch.device("cuda", 0)

    def _check(self, func: Any, given: list[Tensor], place: torch.device, later: bool) -> None:
        recording = torch.cuda.is_current_stream_capturing()
        across = any(t.is_cuda != (place.type == "cuda") and t.dim() for t in given)
        if across and func not in COPIES | INDEXED:
            where = [(str(t.device), tuple(t.shape)) for t in given]
            raise RuntimeError(f"{func} meets tensors of two devices: {where}")
        found = None
        if func in COPIES and place.type == "cpu":
            found = "a tensor fetched"
        elif func in COPIES | INDEXED and not later and not all(t.is_cuda for t in given):
            found = "a tensor sent"
        if func in COUNTED or (func in INDEXED and any(t.dtype == torch.bool for t in given)):
            found = "a shape that depends on values"
        if found is not None:
            self.waits[found] += 1
        if recording and (found is not None or across):
            raise RuntimeError(
                f"{func} while a graph is recorded: {found or 'copies from the host'}"
            )

    def _record(self, func: Any, args: Any, kwargs: Any, place: torch.device) -> Any:
        """Nothing is computed but shapes; what is handed back holds whatever lies there."""
        tried, real = _Twins(place, scratch=True), _Twins(place)
        drawing = self.random.recorded(kwargs) if _draws(func) else nullcontext
        with self.random.aside():
            handed = tried.back(func(*tried.of(args), **tried.of(kwargs)), filled=False)
        args, kwargs = real.of(args), real.of(kwargs)
        into = [_on_host(t) for t in _tensors(handed) if id(t) not in tried.given]
        given = set(real.pairs)  # by themselves: with the tensors would live their autograd graph

        def kernel() -> None:
            with drawing():
                found = _tensors(func(*args, **kwargs))
            made = [t for t in found if id(t) not in given]
            for there, here in zip(into, made, strict=True):
                there.copy_(here)

        self.recorded.append(kernel)
        return handed

    # --- graphs, whose recording and replaying PyTorch leaves to the driver

    def _stand_in_for_graphs(self, graph: Any) -> None:
        def begin(this: Any, *args: Any, **kwargs: Any) -> None:
            self.recorded, self.random.draws = [], {}
            self.graphs[this] = self.recorded, self.random.draws
            BEGIN(this, *args, **kwargs)

        def replay(this: Any) -> None:
            REPLAY(this)
            kernels, draws = self.graphs[this]
            for kernel in kernels:
                kernel()
            for generator, count in draws.values():
                generator.set_offset(generator.get_offset() + _Random.STEP * count)
            self.replays += 1

        graph.capture_begin, graph.replay = begin, replay


class _Twins:
    """Tensors on the CPU for those on the card, over the same memory; or copies to try on."""

    def __init__(self, place: torch.device, scratch: bool = False) -> None:
        self.place, self.scratch = place, scratch
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.given: set[int] = set()

    def of(self, values: Any) -> Any:
        return tree_map(self._twin, values)

    def _twin(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        if not isinstance(value, Tensor) or not value.is_cuda:
            return value
        twin = _on_host(value)
        if self.scratch:
            memory = torch.zeros(value.untyped_storage().nbytes(), dtype=torch.uint8)
            twin = _laid_out(value, memory.untyped_storage())
        self.pairs[id(twin)] = twin, value
        self.given.add(id(value))
        return twin

    def back(self, values: Any, filled: bool = True) -> Any:
        return tree_map(lambda value: self._back(value, filled), values)

    def _back(self, value: Any, filled: bool) -> Any:
        if not isinstance(value, Tensor) or self.place.type == "cpu":
            return value
        if id(value) in self.pairs:
            return self.pairs[id(value)][1]
        made = torch.empty_strided(
            value.size(), value.stride(), dtype=value.dtype, device=self.place
        )
        if filled:
            _on_host(made).copy_(value)
        return made


class _Random:
    """Draws of a card's generators: as there, a function of seed and place in the stream.

    Kernels draw from the CPU's own generator, which is set to what that function says for as
    long as the kernel runs.
    """

    STEP = 4

    def __init__(self) -> None:
        self.draws: Draws = {}

    def drawing(self, kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """Around a kernel that runs now."""
        generator = self._taken(kwargs)
        place = generator.get_offset()
        generator.set_offset(place + self.STEP)
        return self._set(generator, place)

    def recorded(self, kwargs: dict[str, Any]) -> Callable[[], AbstractContextManager[None]]:
        """Around a kernel of a graph: as the generator stands when the graph is replayed."""
        generator = self._taken(kwargs)
        _, before = self.draws.get(generator._cdata, (generator, 0))
        self.draws[generator._cdata] = generator, before + 1
        return lambda: self._set(generator, generator.get_offset() + self.STEP * before)

    def _taken(self, kwargs: dict[str, Any]) -> torch.Generator:
        """The card's generator that is asked for, which the CPU's kernel is not told of."""
        asked = kwargs.get("generator")
        if asked is not None:
            kwargs["generator"] = None
        return torch.cuda.default_generators[0] if asked is None else asked

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is drawn within it was not."""
        state = torch.default_generator.get_state()
        try:
            yield
        finally:
            torch.default_generator.set_state(state)

    @contextmanager
    def _set(self, generator: torch.Generator, place: int) -> Iterator[None]:
        mixed = np.random.SeedSequence((generator.initial_seed(), place))
        with self.aside():
            torch.default_generator.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))
            yield


def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _later(args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> bool:
    """Whether the host goes on while it is copied, as it may from memory that is pinned."""
    asked = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    return asked is True and all(t.is_cuda or t.is_pinned() for t in given)


def _on_host(t: Tensor) -> Tensor:
    """A CPU tensor over the memory of `t`, which lies on the card."""
    storage = t.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
    memory = torch._C._construct_storage_from_data_pointer(
        storage.data_ptr(), torch.device("cpu"), storage.nbytes()
    )
    return _laid_out(t, memory)


def _laid_out(t: Tensor, memory: torch.UntypedStorage) -> Tensor:
    """A CPU tensor like `t` in other memory."""
    return torch.empty(0, dtype=t.dtype).set_(memory, t.storage_offset(), t.size(), t.stride())


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda value: found.append(value) if isinstance(value, Tensor) else None, values)
    return found


def _is_cuda(place: Any) -> bool:
    return place is not None and torch.device(place).type == "cuda"
