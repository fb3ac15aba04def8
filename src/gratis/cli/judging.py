"""The commands about a trained run: evaluate, verify, pictures, report, export."""

import argparse
from pathlib import Path

from gratis import recipe as recipes
from gratis import terminal
from gratis.cli.paths import refuse_taken, run_and_checkpoint, runs_at, shifts_of, write_page
from gratis.launched import rank_and_world
from gratis.names import parse_attack
from gratis.run import PLACES, REPORT, VIEWS, Run, WatchedRun


def evaluate(options: argparse.Namespace) -> int:
    """Attack a trained run, or a model of your own, or show it images from elsewhere (--shift)."""
    for attack in options.attack or []:
        parse_attack(attack)
    shifts = shifts_of(options)
    for flag in ("corruptions", "severities", "partial"):
        if getattr(options, flag) and not shifts:
            raise ValueError(f"--{flag} goes with --shift; without one nothing would heed it")
    attacked = options.attack or not shifts
    if not attacked:
        _refuse_unheeded(options)
    run, checkpoint = _evaluated(options)
    if attacked:
        _attack(run, checkpoint, options)
    rank, _ = rank_and_world()
    if rank:  # of torchrun's processes the first one shows, reports, and looks at shifts
        return 0
    if shifts:
        _shift(run, checkpoint, shifts, options)
    if attacked:
        terminal.table([run])
    terminal.shifts(run, list(shifts))
    write_page([run], run.path / REPORT)
    return 0


def _refuse_unheeded(options: argparse.Namespace) -> None:
    """ValueError for what is said of attacks where images are only shown."""
    said = {
        "--eps": options.eps is not None,
        "--union": options.union,
        "--checks": options.checks is not None,
        "--surrogate": options.surrogate is not None,
        "--save-adversarial": options.save_adversarial,
    }
    if used := [flag for flag, given in said.items() if given]:
        raise ValueError(
            f"{' and '.join(used)}: said of attacks, and --shift alone makes none; name one with "
            "--attack, or leave them out"
        )


def _attack(run: Run, checkpoint: str | None, options: argparse.Namespace) -> None:
    from dataclasses import replace

    from gratis.asked import question
    from gratis.assess import evaluate_run
    from gratis.recipe import from_plain

    asked = question(from_plain(run.recipe))
    if asked.detects and (options.attack or options.eps is not None):
        raise ValueError(
            "this run finds boxes, which are judged by mean average precision and not attacked: "
            "leave --attack and --eps out; --shift coco-c=generated shows it corrupted images"
        )
    balls = asked.balls
    if options.eps is not None:
        balls = (replace(balls[0], eps=options.eps),)
    asked = replace(
        asked,
        attacks=tuple(options.attack or asked.attacks),
        balls=balls,
        limit=options.limit if options.limit is not None else asked.limit,
        checkpoint=checkpoint or asked.checkpoint,
        alone=not options.union,
        checks=options.checks or "quick",
        surrogate=Run.open(options.surrogate) if options.surrogate else None,
        keep_points=options.save_adversarial,
    )
    rank, world = rank_and_world()
    if rank:
        watched = WatchedRun(run.path)
        watched.places = run.places
        evaluate_run(watched, asked, share=(rank, world))
        return
    with run.locked(), terminal.bar(run.path.name) as progress:
        evaluate_run(run, asked, progress, share=(rank, world))


def _shift(
    run: Run,
    checkpoint: str | None,
    shifts: dict[str, Path | None],
    options: argparse.Namespace,
) -> None:
    from gratis.data.shifted import Asked
    from gratis.shifts import shift_run

    asked = [
        Asked(
            name,
            place,
            options.corruptions or 15,
            tuple(options.severities or (1, 2, 3, 4, 5)),
            options.limit,
            options.partial,
        )
        for name, place in shifts.items()
    ]
    with run.locked(), terminal.bar(run.path.name) as progress:
        shift_run(run, asked, checkpoint, progress)


def verify(options: argparse.Namespace) -> int:
    """Prove that no attack can succeed, image by image, or find one that does (Linf)."""
    run, checkpoint = run_and_checkpoint(options.run)
    from gratis.balls import Linf
    from gratis.recipe import from_plain
    from gratis.verify import Settings, verify_run
    from gratis.verify.console import show

    recipe = from_plain(run.recipe)
    balls = recipe.evaluation_balls()
    if options.eps is None and not isinstance(balls[0], Linf):
        raise ValueError(
            "this run was evaluated in another norm; exact verification is in Linf: --eps"
        )
    eps = balls[0].eps if options.eps is None else options.eps
    ball = Linf(eps, balls[0].low, balls[0].high)
    with run.locked(), terminal.bar(run.path.name) as progress:
        summary = verify_run(
            run,
            ball,
            Settings(time_limit=options.time_limit, seed=recipe.seed),
            limit=options.limit,
            checkpoint=checkpoint or recipe.evaluation.checkpoint,
            cross_check=options.cross_check,
            progress=progress,
        )
    show(summary)
    print(f"written: {run.path / 'verify'}")
    return 1 if options.cross_check and summary["cross_check"]["counts"]["disagreed"] else 0


def pictures(options: argparse.Namespace) -> int:
    """Draw what networks see, side by side: loss around images, large attacks, what falls first."""
    from gratis import pictures as drawn

    for sitter in drawn.sitters(runs_at(options.run), options.limit):
        with sitter.run.locked(), terminal.bar(sitter.run.path.name) as progress:
            fresh = drawn.keep(sitter, options.eps, progress)
        print(f"{'written' if fresh else 'there already'}: {sitter.run.path / VIEWS}")
    return report(options)


def report(options: argparse.Namespace) -> int:
    """Write one page about one or several runs."""
    runs = runs_at(options.run)
    single = runs[0].path if len(runs) == 1 else options.run[0]
    write_page(runs, options.out or single / REPORT)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a run's network, or its figures, in a form that others read."""
    run, checkpoint = run_and_checkpoint(options.run)
    about = dict(_pair(text) for text in options.about)
    if about and options.kind != "robustbench":
        raise ValueError(f"--about is for --as robustbench; --as {options.kind} takes none")
    from gratis import export as exports
    from gratis.recipe import from_plain

    if options.kind == "robustbench":
        exports.write_json(exports.robustbench(run, about, checkpoint), options.out)
    else:
        named = checkpoint or from_plain(run.recipe).evaluation.checkpoint
        off = exports.export(run, options.kind, options.out, named)
        print(f"read back: logits within {off:.1g} of the largest one")
    print(f"written: {options.out}")
    return 0


def _evaluated(options: argparse.Namespace) -> tuple[Run, str | None]:
    """The run that is to be evaluated; for module:function a new one with that model in it."""
    given = str(options.run)
    own = {
        **{"--data": options.data, "--out": options.out, "--weights": options.weights},
        "--set": options.set or None,
    }
    if ":" not in given or options.run.exists():
        places = _places(own.pop("--set") or [])
        if used := [flag for flag, value in own.items() if value is not None]:
            raise ValueError(
                f"{' and '.join(used)} go with a model module:function, not with a run"
            )
        run, checkpoint = run_and_checkpoint(options.run)
        run.places = places
        return run, checkpoint
    if options.data is None or options.out is None:
        raise ValueError(
            f"{given} is a model of your own: --data RECIPE says which images and threat it is "
            "evaluated on, --out DIR where the outcome is kept"
        )
    refuse_taken(options.out, False, f"evaluate it again as gratis evaluate {options.out}")
    if rank_and_world()[1] > 1:
        raise ValueError(
            f"{given} is a model of your own, which one process puts into a directory: evaluate "
            f"it without torchrun once, then torchrun ... -m gratis evaluate {options.out}"
        )
    from gratis.given import adopt

    # the recipe's own network is another's: what --set says of the model is for the given one
    base = {key: value for key, value in recipes.read(options.data).items() if key != "model"}
    values = recipes.override(base, options.set)
    return adopt(values, given, options.weights, options.out), None


def _places(settings: list[str]) -> dict[str, object]:
    """Where --set says that a run's images lie; ValueError for anything else that it says."""
    said = recipes.override({}, settings)
    data = said.pop("data", {})
    if said or not isinstance(data, dict) or data.keys() - set(PLACES):
        raise ValueError(
            f"of a run --set changes {', '.join(f'data.{key}' for key in PLACES)} alone, where its "
            "images lie by now; all else goes with a model module:function"
        )
    return data


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--about {text!r}: write key=value, as in authors='A. Author'")
    return key, value
