"""Training as a recipe says, from its data to its results; on several processes too."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from gratis.assess import Progress, evaluate_run, nowhere, question
from gratis.data import check_match
from gratis.distributed import joined
from gratis.journal import Journal
from gratis.recipe import Recipe, from_plain
from gratis.run import Run, WatchedRun
from gratis.setting import load_split, pick_device, training_data
from gratis.training import Training


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
    Where torchrun has started several processes, each calls this alike and they train as one;
    the first alone writes, evaluates and shows progress, the others return when training ends.
    Raises ValueError for unusable input, DivergedError for a loss that is not finite.
    """
    if not isinstance(recipe, Recipe):
        recipe = from_plain(recipe)
    out = Path("runs") / recipe.name if out is None else out
    asked = question(recipe)
    with ExitStack() as held:
        with joined(pick_device(recipe.engine.device)) as processes:
            processes.check_divides(recipe.data.batch_size)
            with processes.leader_first():
                data = training_data(recipe)
                # now rather than after hours of training: is there anything to be judged on?
                test = load_split(recipe.data, "test")
            check_match(data.training, test)
            directory: Run = WatchedRun(Path(out))
            if processes.leads:
                writing = Run.writing(out, recipe.plain(), resume=resume)
                directory = held.enter_context(writing)
            with closing(Journal(directory.log_writer(), processes)) as journal:
                Training(recipe, data, directory, journal, progress).go()
        # what follows may take longer than the others would wait
        if processes.leads and not asked.answered_by(directory.results):
            evaluate_run(directory, asked, progress, test)
    return directory
