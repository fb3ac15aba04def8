"""Training as a recipe says, from its data to its results; on several processes too."""

import hashlib
import json
import platform
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gratis.asked import Question, question
from gratis.assess import Progress, evaluate_run, nowhere
from gratis.data import check_match
from gratis.distributed import Processes, joined
from gratis.journal import Journal
from gratis.launched import launch
from gratis.recipe import Recipe, from_plain
from gratis.run import Run, WatchedRun
from gratis.setting import parts_of_batch, pick_device
from gratis.training import Training
from gratis.training_data import load_split, training_data


def run(
    recipe: Recipe | dict[str, Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    progress: Progress = nowhere,
) -> Run:
    """Train as `recipe` says and evaluate, leaving everything in directory `out`.

    recipe: from `gratis.recipe.load`, or a dict of YAML types.  out: runs/NAME unless given.
    resume: go on with the run that `out` holds, bitwise as if it had never stopped (CPU).
    Where torchrun has started several processes, each calls this alike and they train, and then
    evaluate, as one; the first alone writes results and shows progress. Processes that torchrun
    has restarted go on with their run by themselves.
    Raises ValueError for unusable input, DivergedError for a loss that is not finite.
    """
    if not isinstance(recipe, Recipe):
        recipe = from_plain(recipe)
    out = Path("runs") / recipe.name if out is None else Path(out)
    asked, patience = question(recipe), recipe.engine.patience_seconds
    with ExitStack() as held:
        with joined(pick_device(recipe.engine.device), patience) as processes:
            resume = processes.led(lambda: _resumed(out, resume))
            _check_alike(processes, recipe, out)
            if not resume:
                parts_of_batch(recipe, processes.world)
            share = processes.rank, processes.world
            # streamed images are decoded by all together, others loaded after the leading process
            first = processes.leader_first() if recipe.data.stored is None else nullcontext()
            with first:
                data = training_data(recipe, share, partial(_decoding, progress))
            with processes.leader_first():
                # now rather than after hours of training: is there anything to be judged on?
                test = load_split(recipe.data, "test")
            check_match(data.training, test, resized=recipe.data.test_size is not None)
            if processes.world > 1:
                others = "none" if data.unlabelled is None else data.unlabelled.fingerprint
                processes.agree(training_data=data.training.fingerprint, unlabelled_data=others)
            directory: Run = WatchedRun(out)
            if processes.leads:
                writing = Run.writing(out, recipe.plain(), resume=resume, launch=launch())
                directory = held.enter_context(writing)
            with closing(Journal(directory.log_writer(), processes)) as journal:
                Training(recipe, data, directory, journal, progress).go()
            answered = processes.led(lambda: _answered(directory, asked))
        # outside of the group: evaluation may take longer than the others would wait
        if not answered:
            evaluate_run(directory, asked, progress, test, share=(processes.rank, processes.world))
    return directory


def _decoding(progress: Progress, done: int, total: int) -> None:
    progress("decode", done, total, "")


def _resumed(out: Path, resume: bool) -> bool:
    """Whether to go on with what `out` holds; ValueError where it may not be written."""
    run = Run(out)
    resume = resume or run.began(launch())
    run.require_free(resume=resume)
    return resume


def _answered(run: Run, asked: Question) -> bool:
    """Whether the run, now trained to its end, was evaluated as asked: no earlier weights of it."""
    results = run.results
    if results is None:
        return False
    return asked.answered_by(results, run.load_checkpoint(asked.checkpoint)[0]["updates"])


def _check_alike(processes: Processes, recipe: Recipe, out: Path) -> None:
    """ValueError for processes that were started differently."""
    plain = json.dumps(recipe.plain(), sort_keys=True)
    processes.agree(
        batch_size=str(recipe.data.batch_size),
        recipe=hashlib.sha256(plain.encode()).hexdigest()[:16],
        directory=str(out),
        version_of_gratis=version("gratis"),
        version_of_torch=torch.__version__,
        version_of_python=platform.python_version(),
    )
