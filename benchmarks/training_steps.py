"""What an update costs, in units of the plain step that everybody starts from.

    python benchmarks/training_steps.py                 # PreActResNet18, 3x32x32, two threads
    python benchmarks/training_steps.py --width 16      # a quick look

The unit is a natural update in plain PyTorch: fp32, channels first, eager. Beside it stand the
same methods in plain PyTorch as released code writes them (every backward computes weight
gradients too), and ours as `Learner` runs them, channels last and in bf16 where the machine has
it (the targets are for such machines). All take turns,
`--rounds` times; medians. Random pixels and labels: nothing here depends on what is in them.
`--compile` adds ours as compiled code, `--peers` the same updates with the perturbations of other
libraries (see `peers.py`), and ours in fp32.
"""

import argparse
from collections.abc import Callable

import peers
import torch
import torch.nn.functional as F
from measuring import paired, setting
from torch import Tensor, nn

from gratis import FastAdvProp, Free, Learner, Linf, Natural, PGDTraining, add_aux, fgsm_rs
from gratis.nn import build_model
from gratis.passes import Batch, Method
from gratis.precision import named

EPS = 8 / 255
STATISTICS = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2471, 0.2435, 0.2616]}
TARGETS = {"natural": 0.50, "FGSM-RS": 0.80, "Free-8, an update": 0.51, "PGD-7": 2.6}
ADVPROP_TARGET = 1.02
ADVPROP_SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true", help="add ours as compiled code")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.precision = named(options.precision, device)
    # Fast AdvProp loads more images, so that as many clean ones are in a batch (Mei 2022)
    loaded = round(options.batch / (1 - ADVPROP_SHARE))
    images = torch.rand(loaded, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (loaded,), device=device)
    x, y = images[: options.batch], labels[: options.batch]

    def network() -> nn.Module:
        torch.manual_seed(0)
        shape = {"classes": 10, "channels": 3, "image_size": 32}
        return build_model(
            "preact-resnet18", **shape, width=options.width, **STATISTICS
        ).to(device)  # fmt: skip

    def ours(
        method: Method,
        model: nn.Module,
        size: int | None = None,
        precision: str = options.precision,
        compiled: bool = False,
    ) -> Callable[[], object]:
        batch = Batch(images[:size], labels[:size])
        learner = Learner(
            model,
            torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4),
            precision=precision,
            channels_last=True,
            seed=0,
        )
        if compiled:
            learner.compile()
        return lambda: learner.fit(method, batch)

    ball, advprop = Linf(EPS), FastAdvProp(Linf(1 / 255), adversarial=ADVPROP_SHARE)
    methods: dict[str, Callable[[], Method]] = {
        "natural": Natural,
        "FGSM-RS": lambda: fgsm_rs(ball),
        "PGD-7": lambda: PGDTraining(ball, steps=7),
    }
    jobs = {
        "plain natural": plain(network(), x, y, 0),
        "plain FGSM-RS": plain(network(), x, y, 1),
        "plain PGD-7": plain(network(), x, y, 7),
        **{name: ours(made(), network(), options.batch) for name, made in methods.items()},
        "Free-8": ours(Free(ball, replays=8), network(), options.batch),
        **{
            f"Fast AdvProp, {size} images": ours(advprop, add_aux(network()), size)
            for size in (options.batch, loaded)
        },
    }
    if options.compile:
        jobs |= {
            f"{name}, compiled": ours(made(), network(), options.batch, compiled=True)
            for name, made in methods.items()
        }
    if options.peers:
        jobs |= {
            f"{name}, fp32": ours(made(), network(), options.batch, "fp32")
            for name, made in methods.items()
        }
        for name, steps in {"FGSM-RS": 1, "PGD-7": 7}.items():
            for peer in peers.PACKAGES:
                jobs[f"{peer} {name}"] = through(peer, network(), x, y, steps)
    print(setting() + (f"; {peers.versions(peers.PACKAGES)}" if options.peers else ""))
    print(
        f"PreActResNet18, width {options.width}, batches of {options.batch} at 32x32, "
        f"{options.rounds} paired rounds; ours {options.precision}, channels last"
    )
    seconds = paired(jobs, options.rounds)
    seconds["Free-8, an update"] = seconds.pop("Free-8") / 8
    seconds[f"Fast AdvProp, {loaded} images"] *= options.batch / loaded  # of as many as the others
    unit, own = seconds["plain natural"], seconds["natural"]
    print("\n| update | ms an image | of a plain natural step | of our natural step | target |")
    print("|---|---|---|---|---|")
    for name, taken in seconds.items():
        print(
            f"| {name} | {1000 * taken / options.batch:.2f} | {taken / unit:.3f} "
            f"| {taken / own:.3f} | {TARGETS.get(name, '')} |"
        )
    print()
    for size in (options.batch, loaded):
        passes = advprop.update_thirds(size)[0] / 3 / size
        taken = seconds[f"Fast AdvProp, {size} images"] / passes / own
        parts = " + ".join(str(part) for part in (*advprop.parts(size), advprop.parts(size)[1]))
        print(
            f"Fast AdvProp on batches of {size} ({parts} images a pass): {taken:.3f} of natural at "
            f"equal budget, target {ADVPROP_TARGET}"
        )


def plain(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Callable[[], object]:
    """An update as released code writes it: `steps` of PGD by whole backwards, then the step."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def update() -> None:
        delta = torch.zeros_like(x).uniform_(-EPS, EPS) if steps else torch.zeros_like(x)
        for _ in range(steps):
            delta.requires_grad_()
            F.cross_entropy(model(x + delta), y).backward()
            grad = delta.grad.detach()
            step = 1.25 * EPS if steps == 1 else EPS / 4
            delta = (delta.detach() + step * grad.sign()).clamp(-EPS, EPS)
            delta = (x + delta).clamp(0, 1) - x
        optimizer.zero_grad()
        F.cross_entropy(model(x + delta), y).backward()
        optimizer.step()

    return update


def through(peer: str, model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Callable[[], object]:
    """An update on points that another library finds; cleverhans takes no steps above eps."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    step_size = EPS if steps == 1 else EPS / 4
    attack = peers.pgd(peer, model, eps=EPS, steps=steps, step_size=step_size)

    def update() -> None:
        points = attack(x, y)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(points), y).backward()
        optimizer.step()

    return update


if __name__ == "__main__":
    main()
