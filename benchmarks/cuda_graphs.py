"""What replaying an update as one CUDA graph saves, by method; needs a GPU.

    python benchmarks/cuda_graphs.py
    python benchmarks/cuda_graphs.py --network resnet9 --width 96 --optimizer muon

For random images of 32x32 pixels: milliseconds of learning from a batch kernel by kernel and by
a graph, in turns, medians of five; their ratio; and how far apart the two leave the weights, as a
share of the way there. It is the trial that `engine.graph=auto` makes before a run.
"""

import argparse

import torch
from measuring import setting

from gratis import AdvProp, FastAdvProp, Free, Learner, Linf, Natural, PGDTraining, add_aux, fgsm_rs
from gratis.capturing import decide
from gratis.nn import build_model
from gratis.optim import build_optimizer
from gratis.passes import Batch, Method

BALL = Linf(8 / 255)
METHODS: dict[str, Method] = {
    "natural": Natural(),
    "FGSM-RS": fgsm_rs(BALL),
    "PGD-7": PGDTraining(BALL, steps=7),
    "Free-8": Free(BALL, replays=8),
    "AdvProp-1": AdvProp(BALL, steps=1),
    "Fast AdvProp": FastAdvProp(BALL),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="preact-resnet18")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("CUDA graphs need a GPU that PyTorch sees, and there is none")
    print(setting())
    named = f"{options.network} at width {options.width}, {options.optimizer}, {options.precision}"
    print(f"{named}, batches of {options.batch}")
    print("\n| method | kernel by kernel, ms | by a graph, ms | ratio | apart | used |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, method in METHODS.items():
        print(line(name, method, options), flush=True)


def line(name: str, method: Method, options: argparse.Namespace) -> str:
    torch.manual_seed(0)
    model = build_model(options.network, classes=10, channels=3, image_size=32, width=options.width)
    if method.auxiliary:
        add_aux(model)
    model = model.cuda()
    optimizer = build_optimizer(model, options.optimizer, learning_rate=0.02)
    learner = Learner(
        model,
        optimizer,
        schedule=lambda update, begun: {"lr": 0.001 * (1 + update)},
        precision=options.precision,
        channels_last=True,
        seed=0,
    )
    x = torch.rand(options.batch, 3, 32, 32, device="cuda")
    y = torch.randint(10, (options.batch,), device="cuda")
    found = decide(learner, method, Batch(x, y))
    if found.eager is None or found.replayed is None:
        return f"| {name} | - | - | - | - | no: {found.reason} |"
    used = "yes" if found.used else f"no: {found.reason}"
    ratio = found.replayed / found.eager
    return (
        f"| {name} | {found.eager:.2f} | {found.replayed:.2f} | {ratio:.2f} "
        f"| {found.apart:.1g} | {used} |"
    )


if __name__ == "__main__":
    main()
