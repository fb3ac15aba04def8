"""The run directory: the whole truth about one training run, readable without this package.

    recipe.yaml          the fully resolved recipe
    log.jsonl            one JSON object a line, `kind` says which; units in the keys
    checkpoints/         last.pt, previous.pt (the `last` before), best.pt
    results.json         protocol and outcome of every evaluation
    per_image.npz        one boolean per image and evaluation
    pictures.npz         a few clean and adversarial images, for the report
    views.npz            what `gratis pictures` saw: surfaces, large radii, images that fall
    adversarial/         every point an attack ended at, where that was asked for
    unfinished/          an evaluation that was interrupted, batch by batch
    verify/              verdicts of exact verification, and their summary for each radius
    report.html
    .launch              which start of torchrun's processes writes here, where several do

Nothing here imports torch at module level: the report and the listings read runs without it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import yaml

from gratis.checkpoint import DamagedCheckpointError, is_whole, load_state, save_state
from gratis.files import LogWriter, read_npz, write_atomically, write_npz
from gratis.held import CHECKPOINTS, LAUNCH, LOG, RECIPE, held, never_learned, occupied

Record = dict[str, Any]

PLACES = ("root", "cache", "workers")
"""What of a recipe's data says where and how images are read, not which they are."""
RESULTS = "results.json"
PER_IMAGE = "per_image.npz"
PICTURES = "pictures.npz"
VIEWS = "views.npz"
ADVERSARIAL = "adversarial"
UNFINISHED = "unfinished"
REPORT = "report.html"


class Run:
    """A run directory. `Run.writing` starts or continues one, `Run.open` reads one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: Record = {}  # where its images lie by now, in place of what the recipe says

    @classmethod
    @contextmanager
    def writing(
        cls, path: str | Path, recipe: Record, *, resume: bool, launch: str | None = None
    ) -> "Iterator[Run]":
        """Hold directory `path` for a run of `recipe` (plain YAML types), made if need be.

        launch: what `began` will know this start by.

        Raises ValueError where `path` already holds anything, unless `resume` is given and it
        holds a run of the same recipe: a run is never overwritten. RunInUseError while another
        process holds it.
        """
        run = cls(Path(path))
        run.require_free(resume=resume)
        (run.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        with run.locked():
            run.require_free(resume=resume)  # another process may have been faster
            if launch is not None:
                write_atomically(run.path / LAUNCH, launch.encode())
            if (run.path / RECIPE).exists() and not never_learned(run.path):
                run._require_same(recipe)
            else:
                content = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
                write_atomically(run.path / RECIPE, content.encode())
            yield run

    def began(self, launch: str | None) -> bool:
        """Whether the start that `launch` stands for wrote here: its restart may go on."""
        known = self.path / LAUNCH
        return launch is not None and known.is_file() and known.read_text() == launch

    def require_free(self, *, resume: bool) -> None:
        """ValueError where a run may not be written: to resume, or to begin."""
        if resume:
            if not self.path.is_dir():
                raise ValueError(f"nothing to resume: there is no directory {self.path}")
            return
        if self.path.exists() and not self.free():
            raise ValueError(
                f"{self.path} exists and is not empty; a run directory is never overwritten: "
                "give another --out, move it away, or continue it with --resume"
            )

    def free(self) -> bool:
        """Whether a run may begin in the directory."""
        return self.path.is_dir() and not occupied(self.path)

    def _require_same(self, recipe: Record) -> None:
        # which images they are is looked at later
        elsewhere = {*(f"data.{key}" for key in PLACES), "data.unlabelled.root"}
        if different := sorted(set(_differences(self.recipe, recipe)) - elsewhere):
            raise ValueError(
                f"{self.path} holds a run of another recipe; it differs in "
                f"{', '.join(different)}; give the same recipe and settings, or another --out"
            )

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """The run in directory `path`; ValueError where there is none."""
        path = Path(path)
        if not (path / RECIPE).is_file():
            raise ValueError(f"{path} is no run directory: it holds no {RECIPE}")
        return cls(path)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the directory against other writers, see `held`."""
        return held(self.path)

    # --- recipe

    @property
    def recipe(self) -> Record:
        recipe: Record = yaml.safe_load((self.path / RECIPE).read_text("utf-8"))
        if self.places:
            recipe["data"] = {**(recipe.get("data") or {}), **self.places}
        return recipe

    @property
    def recipe_sha256(self) -> str:
        return hashlib.sha256((self.path / RECIPE).read_bytes()).hexdigest()

    # --- log

    def log(self) -> list[Record]:
        """The log in order, less what a resumed run did over again.

        A record with kind `resumed` and `update` k supersedes every earlier record
        whose `update` lies beyond k. A last line torn by a crash is left out.
        """
        path = self.path / LOG
        records: list[Record] = []
        if not path.exists():
            return records
        for line in path.read_text("utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["kind"] == "resumed":
                records = [r for r in records if r.get("update", 0) <= record["update"]]
            records.append(record)
        return records

    def log_writer(self) -> LogWriter:
        return LogWriter(self.path / LOG)

    # --- results

    @property
    def results(self) -> Record | None:
        """The contents of results.json, or None before training has ended."""
        path = self.path / RESULTS
        if not path.exists():
            return None
        results: Record = json.loads(path.read_text("utf-8"))
        return results

    def write_results(self, results: Record) -> None:
        write_atomically(self.path / RESULTS, (json.dumps(results, indent=2) + "\n").encode())

    def per_image(self) -> dict[str, npt.NDArray[Any]]:
        return read_npz(self.path / PER_IMAGE)

    def write_per_image(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Merge `arrays` into per_image.npz; an array of the same name is replaced."""
        write_npz(self.path / PER_IMAGE, {**self.per_image(), **arrays})

    def pictures(self) -> dict[str, npt.NDArray[Any]]:
        return read_npz(self.path / PICTURES)

    def write_pictures(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        write_npz(self.path / PICTURES, dict(arrays))

    def views(self) -> dict[str, npt.NDArray[Any]]:
        return read_npz(self.path / VIEWS)

    def write_views(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        write_npz(self.path / VIEWS, dict(arrays))

    def write_adversarial(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
        """Keep the points of one evaluation; returns the file's path inside the run."""
        (self.path / ADVERSARIAL).mkdir(exist_ok=True)
        inside = f"{ADVERSARIAL}/{name}.npz"
        write_npz(self.path / inside, dict(arrays))
        return inside

    @property
    def unfinished(self) -> Path:
        """Where interrupted evaluations lie."""
        return self.path / UNFINISHED

    # --- checkpoints

    def checkpoint_path(self, name: str) -> Path:
        return self.path / CHECKPOINTS / f"{name}.pt"

    def save_checkpoint(self, name: str, state: Record) -> None:
        """Write checkpoint `name` so that a crash at any moment leaves a whole one.

        `last` keeps the one before as `previous`.
        """
        target = self.checkpoint_path(name)
        fresh = target.with_suffix(".pt.tmp")
        save_state(fresh, state)
        if name == "last" and target.exists():
            os.replace(target, self.checkpoint_path("previous"))
        os.replace(fresh, target)

    @property
    def has_checkpoint(self) -> bool:
        return any(self.checkpoint_path(name).exists() for name in ("last", "previous"))

    def check_checkpoints(self) -> None:
        """ValueError for a run that ended and whose checkpoints are gone: it would begin anew."""
        if self.results is not None and not self.has_checkpoint:
            raise ValueError(
                f"{self.path} was trained and evaluated, but checkpoints/last.pt and previous.pt "
                "are missing; copy them from where the run was, or begin anew with another --out"
            )

    def set_aside_damaged(self) -> None:
        """Rename a damaged `last`, so that the next save does not put it in `previous`'s place."""
        last = self.checkpoint_path("last")
        if last.exists() and not is_whole(last):
            os.replace(last, last.with_suffix(".pt.damaged"))

    def load_checkpoint(self, name: str = "last") -> tuple[Record, list[str]]:
        """The state of checkpoint `name` and what had to be said about reading it.

        A damaged or missing `last` is named in the second value and `previous` is used.
        """
        warnings = []
        names = [name, "previous"] if name == "last" else [name]
        for candidate in names:
            path = self.checkpoint_path(candidate)
            if not path.exists():
                warnings.append(f"{path} does not exist")
                continue
            try:
                return load_state(path), warnings
            except DamagedCheckpointError as error:
                warnings.append(str(error))
        raise ValueError(f"no usable checkpoint in {self.path}: " + "; ".join(warnings))

    def whole_checkpoint(self, name: str) -> Record:
        """The state of checkpoint `name` itself; ValueError where an older one would stand in."""
        state, warnings = self.load_checkpoint(name)
        if warnings:
            older = self.checkpoint_path("previous")
            raise ValueError(f"{'; '.join(warnings)}; the one before it is {older}")
        return state


class WatchedRun(Run):
    """A run directory as seen by a process that trains along with the one that writes it.

    It reads what is there and leaves everything as it is.
    """

    def log_writer(self) -> LogWriter:
        return LogWriter(Path(os.devnull))

    def save_checkpoint(self, name: str, state: Record) -> None:
        """Left to the process that writes."""

    def set_aside_damaged(self) -> None:
        """Left to the process that writes."""


def _differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """The dotted keys at which two plain values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            below = f"{where}.{key}" if where else str(key)
            yield from _differences(one.get(key), other.get(key), below)
    elif one != other:
        yield where


def settled(records: Iterable[Mapping[str, Any]], kind: str) -> Any:
    """What a run settled on for all its life: `used` of its record of that kind, if any."""
    found = [record["used"] for record in records if record["kind"] == kind]
    return found[-1] if found else None
