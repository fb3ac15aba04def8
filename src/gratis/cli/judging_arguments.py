"""What the commands about a trained run take."""

from pathlib import Path

from gratis.cli.kinds import Command, count, number, setting_argument, shift_arguments


def evaluate(command: Command) -> None:
    attack = command(
        "evaluate",
        "the same attack, threat, images and checkpoint replaces, and so does the same shift, or\n"
        "boxes found, of a checkpoint; anything else is added; an\n"
        "interrupted evaluation goes on where it was\n"
        "examples:\n  gratis evaluate runs/digits --attack pgd-100-5 --eps 0.1\n"
        "  gratis evaluate runs/digits/checkpoints/best.pt --attack autoattack --limit 1000\n"
        "  gratis evaluate runs/cifar10 --shift cifar10-c=DIR --shift corruptions=generated\n"
        "  gratis evaluate runs/copied --set data.root=DIR\n"
        "  gratis evaluate my_models:build --weights net.pt --data cifar10 --out runs/theirs",
    )
    attack.add_argument(
        "run",
        metavar="RUN|CHECKPOINT|MODULE:FUNCTION",
        type=Path,
        help="a run directory, RUN/checkpoints/X.pt, or a function that returns a network from "
        "pixels in [0, 1] to logits",
    )
    attack.add_argument(
        "--attack",
        action="append",
        metavar="ATTACK",
        help="fgsm, bim-K, pgd-K-R, cw-K-R (K steps, R restarts), each also with :alpha=8/255, "
        "apgd-ce, apgd-t, fab-t, square, autoattack; repeatable (default: the recipe's); alpha is "
        "eps/4 unless given",
    )
    attack.add_argument(
        "--eps", type=number, help="radius, as 8/255 or 0.1 (default: the recipe's)"
    )
    attack.add_argument("--limit", type=count, metavar="N", help="the first N test images")
    attack.add_argument(
        "--union",
        action="store_true",
        help="give each attack only what the ones before left: the worst case alone, for less",
    )
    attack.add_argument(
        "--checks",
        choices=("none", "quick", "full"),
        help="signs of gradient masking: those that cost little beside the attacks, or all "
        "(default: quick; full with autoattack)",
    )
    attack.add_argument(
        "--surrogate",
        type=Path,
        metavar="RUN",
        help="another run on the same data, for the check whether its adversarial points transfer",
    )
    attack.add_argument(
        "--save-adversarial", action="store_true", help="keep every point in RUN/adversarial"
    )
    shift_arguments(attack)
    attack.add_argument(
        "--corruptions",
        type=int,
        choices=(15, 19),
        help="with --shift: the 15 that benchmarks average, or the four extra ones too "
        "(default: 15)",
    )
    attack.add_argument(
        "--severities",
        type=int,
        nargs="+",
        choices=range(1, 6),
        metavar="N",
        help="with --shift: these alone, as in --severities 1 3 5",
    )
    attack.add_argument(
        "--partial",
        action="store_true",
        help="with --shift: evaluate what there is of an incomplete benchmark, and say so",
    )
    attack.add_argument(
        "--data", metavar="RECIPE", help="for MODULE:FUNCTION: the recipe with images and threat"
    )
    attack.add_argument("--weights", type=Path, metavar="FILE", help="its state dict")
    attack.add_argument("--out", type=Path, metavar="DIR", help="the run directory made for it")
    setting_argument(attack)


def verify(command: Command) -> None:
    proof = command(
        "verify",
        "for small networks of Conv2d, Linear, ReLU and the like, such as mnist-net: an attack,\n"
        "bounds, branch and bound, and with pip install 'gratis[verify]' linear and integer\n"
        "programs. Verdicts are kept: the same command goes on after Ctrl-C, and a longer\n"
        "--time-limit tries the undecided images alone again; status 1 if SCIP disagrees\n"
        "examples:\n  gratis verify runs/mnist --eps 0.1 --limit 1000 --time-limit 60\n"
        "  gratis verify runs/mnist --eps 0.1 --limit 1000 --cross-check 10",
    )
    proof.add_argument(
        "run", metavar="RUN|CHECKPOINT", type=Path, help="a run directory or RUN/checkpoints/X.pt"
    )
    proof.add_argument("--eps", type=number, help="radius, as 8/255 or 0.1 (default: the recipe's)")
    proof.add_argument("--limit", type=count, metavar="N", help="the first N test images")
    proof.add_argument(
        "--time-limit",
        type=number,
        default=60.0,
        metavar="SECONDS",
        help="branch and bound on one image, and as long again SCIP (default: %(default)g)",
    )
    proof.add_argument(
        "--cross-check",
        type=count,
        default=0,
        metavar="N",
        help="then solve N decided images, the hardest first, with SCIP alone and compare",
    )


def pictures(command: Command) -> None:
    views = command(
        "pictures",
        "the arrays stay in each RUN (views.npz), so that `gratis report` shows them too; what is\n"
        "there for the same checkpoint and settings is not computed again\n"
        "examples:\n  gratis pictures runs/demo\n"
        "  gratis pictures runs/free-8 runs/pgd-7 --eps 30/255 --out side-by-side.html",
    )
    views.add_argument(
        "run", metavar="RUN", nargs="+", type=Path, help="run directories, of the same data"
    )
    views.add_argument(
        "--eps",
        type=number,
        default=30 / 255,
        help="the large Linf radius that images are attacked at (default: 30/255)",
    )
    views.add_argument(
        "--limit",
        type=count,
        default=200,
        metavar="N",
        help="find where the first N test images fall (default: %(default)d)",
    )
    views.add_argument("--out", type=Path, metavar="FILE", help="the page (default: in the RUN)")


def report(command: Command) -> None:
    page = command("report", "example: gratis report runs/demo --out demo.html")
    page.add_argument("run", metavar="RUN", nargs="+", type=Path, help="run directories")
    page.add_argument("--out", type=Path, metavar="FILE", help="the page (default: in the RUN)")


def export(command: Command) -> None:
    copy = command(
        "export",
        "what is written is read back and compared first\n"
        "  weights      a state dict, normalisation among it\n"
        "  torch        a program of torch.export\n"
        "  onnx         with pip install 'gratis[export]'\n"
        "  robustbench  the JSON entry of an autoattack result\n"
        "examples:\n  gratis export runs/cifar10 --as onnx --out net.onnx\n"
        "  gratis export runs/cifar10 --as robustbench --about authors='A. Author' --out net.json",
    )
    copy.add_argument(
        "run", metavar="RUN|CHECKPOINT", type=Path, help="a run directory or RUN/checkpoints/X.pt"
    )
    copy.add_argument(
        "--as", dest="kind", choices=("weights", "torch", "onnx", "robustbench"), required=True
    )
    copy.add_argument("--out", type=Path, metavar="FILE", required=True, help="a new file")
    copy.add_argument(
        "--about",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="for robustbench, what a run does not know: authors, venue, link, ...",
    )
