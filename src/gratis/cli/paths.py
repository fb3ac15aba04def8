"""Paths as typed: where a run may be written, which runs they name, where the page goes."""

from argparse import Namespace
from pathlib import Path

from gratis.names import parse_shift
from gratis.run import Run

CONTINUE = "give another --out, move it away, or continue it with --resume"


def refuse_taken(out: Path, resume: bool, remedy: str = CONTINUE, *, run: bool = True) -> None:
    """An early word on what will not be written over, before torch is imported.

    run: whether it is a run that shall begin there, which may after a start that came to nothing.
    """
    begins = run and Run(out).free()
    if not resume and out.exists() and any(out.iterdir()) and not begins:
        raise ValueError(f"{out} exists and is not empty; nothing is overwritten: {remedy}")


def run_and_checkpoint(path: Path) -> tuple[Run, str | None]:
    """A run directory, or one of its checkpoints: RUN/checkpoints/best.pt."""
    if path.suffix == ".pt":
        if not path.is_file():
            raise ValueError(f"no checkpoint {path}")
        if path.parent.name != "checkpoints":
            raise ValueError(
                f"{path} lies outside a run directory (RUN/checkpoints/NAME.pt); the recipe "
                "beside it says which network and data it belongs to"
            )
        return Run.open(path.parent.parent), path.stem
    return Run.open(path), None


def runs_at(paths: list[Path]) -> list[Run]:
    """The runs at `paths`, and those inside of them where one is no run itself."""
    runs = []
    for path in paths:
        inside = sorted(p.parent for p in path.glob("*/recipe.yaml"))
        alone = (path / "recipe.yaml").is_file() or not inside
        runs += [Run.open(path)] if alone else [Run.open(p) for p in inside]
    return runs


def shifts_of(options: Namespace) -> dict[str, Path | None]:
    """The directory of each --shift, None for generated; an early word on what is not there."""
    found: dict[str, Path | None] = {}
    for text in options.shift:
        name, place = parse_shift(text)
        if name in found:
            raise ValueError(f"--shift {name} is given twice; evaluate one after the other")
        found[name] = None if place is None else Path(place).expanduser()
        if (directory := found[name]) is not None and not directory.is_dir():
            raise ValueError(f"--shift {name}: {directory} is no directory")
    return found


def write_page(runs: list[Run], out: Path) -> None:
    from gratis.report import write_report

    write_report(runs, out)
    print(f"report: {out}")
