"""Which entries of results.json are what a recipe asks for. Never imports torch."""

from gratis.origins import of_own_images
from gratis.run import Record


def fitting(
    results: Record, kind: str, *, checkpoint: str, limit: int | None, update: int | None = None
) -> list[Record]:
    """The entries of `kind` that are of a checkpoint and of as many of the images that the recipe
    reads as are asked for.

    limit: test images asked for, all if None.  update: the one that the checkpoint was written
    at; None where training is known to have ended before anything was evaluated.
    """

    def fits(entry: Record) -> bool:
        count = entry["images"]["count"]
        whole = results["data"].get("images", count)  # earlier versions did not write it
        return (
            entry["checkpoint"] == checkpoint
            and count == (whole if limit is None else min(limit, whole))
            and update in (None, entry.get("update"))
        )

    found = results.get(kind, [])
    own = of_own_images(results, found if isinstance(found, list) else [found])
    return [entry for entry in own if fits(entry)]
