"""Train the rows of a table one after the other, resumably, and print them as Markdown.

Each script beside this file names its rows; a run that is already finished is not done again,
and one that was interrupted goes on from its last checkpoint.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from gratis import recipe as recipes
from gratis import train
from gratis.names import spell
from gratis.run import Run


def main(
    name: str,
    base: str,
    common: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    further: Mapping[str, Callable[[Run], str]] | None = None,
) -> None:
    """Run `rows` (label -> settings on top of `common` on top of recipe `base`) and print them.

    OUT/ROW in a setting is the directory of another row, which comes before.
    further: more columns, by heading, of each finished run.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument("--out", type=Path, default=Path("runs") / "benchmarks" / name)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for row in options.rows:
        out = options.out / row
        if not options.print:
            print(f"{row} ...", file=sys.stderr, flush=True)
            own = [setting.replace("OUT/", f"{options.out}/") for setting in rows[row]]
            recipe = recipes.load(base, [*common, *own, *options.set])
            train.run(recipe, out, resume=out.exists())
    print_table({row: Run.open(options.out / row) for row in options.rows}, further or {})


def print_table(
    runs: Mapping[str, Run], further: Mapping[str, Callable[[Run], str]] | None = None
) -> None:
    """The finished runs as a Markdown table; above it the first one's machine and versions."""
    further = further or {}
    first = next(run.results for run in runs.values() if run.results)
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    print(f"{first['device']}; {versions}; seed {first['seed']}")
    if note := first["data"].get("note"):
        print(f"Data: {note}")
    headings = "".join(f" {heading} |" for heading in further)
    plain = "| row | attack | images | clean % | robust % (95 %) | passes | seconds | guard |"
    print(f"\n{plain}{headings}")
    print("|---|---|---|---|---|---|---|---|" + "---|" * len(further))
    for row, run in runs.items():
        results = run.results
        if results is None:
            print(f"| {row} | unfinished | | | | | | |" + " |" * len(further))
            continue
        more = "".join(f" {column(run)} |" for column in further.values())
        events = [r["change"] for r in run.log() if r["kind"] == "guard"]
        for entry in results["evaluations"]:
            clean, robust, threat = entry["clean"], entry["robust"], entry["threat"]
            low, high = (100 * bound for bound in robust["ci95"])
            print(
                f"| {row} | {entry['attack']} at {threat['norm']} {spell(threat['eps'])} "
                f"| {entry['images']['count']} | {100 * clean['accuracy']:.2f} "
                f"| {100 * robust['accuracy']:.2f} ({low:.1f}-{high:.1f}) "
                f"| {results['budget']['metered_passes']:.1f} "
                f"| {results['budget']['seconds']:.0f} | {'; '.join(events)} |{more}"
            )
