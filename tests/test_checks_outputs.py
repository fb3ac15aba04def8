"""What the masking checks do to the process that they look into."""

import cProfile

import torch

from gratis.evaluate.checks.outputs import autograd_calls


def test_looking_for_hidden_gradients_leaves_a_profiler_at_work() -> None:
    def before() -> None:
        pass

    def after() -> None:
        pass

    x = torch.ones(1, requires_grad=True)
    with cProfile.Profile() as profile:
        before()
        with autograd_calls() as calls:
            torch.autograd.grad(2 * x, x)
        after()
    assert calls == {"autograd.grad"}
    seen = {entry.code.co_name for entry in profile.getstats() if not isinstance(entry.code, str)}
    assert {"before", "after"} <= seen
