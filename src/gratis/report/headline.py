"""The page in plain words."""

from collections.abc import Sequence

from gratis.report.runs import RunView
from gratis.report.values import distinct, images, listed, passes, threat


def headline(views: Sequence[RunView]) -> str:
    """The page in plain words: what was trained on what, at what budget, attacked how."""
    sentences = []
    for data in distinct(view.data_name for view in views if view.results is not None):
        of_data = [view for view in views if view.data_name == data]
        trained = [view for view in of_data if view.budget]
        for images_of_each in dict.fromkeys(view.training_images for view in trained):
            alike = [view for view in trained if view.training_images == images_of_each]
            each = " each" if len(alike) > 1 else ""
            how = f"trained on {data} at {_budget(alike)} passes per training image{each}"
            how += f" ({images_of_each:,} images)" if images_of_each else ""
            sentences.append(f"{listed([v.label for v in alike])}, {how}, {_attacked(alike)}.")
        if given := [view for view in of_data if view.given]:
            how = f"trained elsewhere, tested on {data}"
            sentences.append(f"{listed([v.label for v in given])}, {how}, {_attacked(given)}.")
    waiting = [view for view in views if not view.finished]
    if waiting:
        verb = "has" if len(waiting) == 1 else "have"
        figures = "; figures are of weights on the way" if any(v.results for v in waiting) else ""
        sentences.append(
            f"{listed([v.label for v in waiting])} {verb} not finished; the curves show how far "
            f"training is{figures}."
        )
    return " ".join(sentences)


def _attacked(views: Sequence[RunView]) -> str:
    attacks: dict[str, list[str]] = {}  # by threat and images
    boxes = distinct(images(view.detection) for view in views if view.detection)
    for evaluation in (evaluation for view in views for evaluation in view.evaluations):
        against = f"({threat(evaluation['threat'])}, {images(evaluation)})"
        attacks.setdefault(against, []).append(evaluation["attack"])
    if not attacks and boxes:
        return f"judged by the boxes that each finds in {listed(boxes)}"
    if not attacks:
        return "not attacked yet"
    said = [f"{listed(distinct(names))} {against}" for against, names in attacks.items()]
    return f"attacked with {listed(said)}"


def _budget(trained: Sequence[RunView]) -> str:
    budgets = [view.budget["predicted_passes"] for view in trained if view.budget]
    low, high = min(budgets), max(budgets)
    if passes(low) == passes(high):
        return f"a budget of {passes(high)}"
    if high - low < 0.02 * high:  # one budget, that whole updates do not quite use up
        return f"a budget of about {passes(high)}"
    return f"budgets of {passes(low)} to {passes(high)}"
