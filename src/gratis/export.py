"""A trained model and its figures in forms that others read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gratis.assess import split_for, trained
from gratis.names import spell
from gratis.origins import fingerprint, of_own_images
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.setting import network
from gratis.training_data import load_split

TOLERANCE = 1e-5
"""An exported model's logits may differ by this, relative to the largest one."""

IMAGES = 16


def export(run: Run, kind: str, out: Path, checkpoint: str) -> float:
    """Write the run's network to `out`; returns the largest relative difference of its logits.

    kind: "weights", a state dict for torch.load with normalisation among it; "torch", a program
    of torch.export; "onnx". Each takes pixels in [0, 1], [B, C, H, W] with any B, and gives
    logits. It is read back and asked about test images before it counts as written.
    Raises ValueError where `out` exists, where a package is missing and where the logits differ.
    """
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten; give another --out")
    recipe = from_plain(run.recipe)
    if recipe.detects and kind != "weights":
        raise ValueError(
            f"--as {kind} writes networks that answer with logits; one that finds boxes is "
            "exported --as weights, under the names that torchvision's RetinaNet has"
        )
    state = run.whole_checkpoint(checkpoint)
    images = split_for(recipe, state)
    model = trained(recipe, images, state).eval()
    x = images.pixels(slice(0, IMAGES))
    fresh = out.with_name(f".{out.name}.unchecked")
    try:
        # as someone who has the file alone builds it
        read_back = KINDS[kind](model, x, fresh, lambda: network(recipe, images).eval())
        with torch.no_grad():
            # of a detector its classes' logits
            expected, answered = (
                getattr(said, "classes", said) for said in (model(x), read_back(x))
            )
        off = float((answered - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not off <= TOLERANCE:
            raise ValueError(
                f"the exported model's logits differ by {off:.2g} of the largest one (at most "
                f"{TOLERANCE:g} is allowed), so {out} was not written"
            )
        fresh.rename(out)
    finally:
        fresh.unlink(missing_ok=True)
    return off


Answers = Callable[[Tensor], Tensor]


def _weights(model: nn.Module, x: Tensor, out: Path, blank: Callable[[], nn.Module]) -> Answers:
    torch.save(model.state_dict(), out)
    again = blank()
    again.load_state_dict(torch.load(out, map_location="cpu", weights_only=True))
    return again


def _torch(model: nn.Module, x: Tensor, out: Path, blank: Callable[[], nn.Module]) -> Answers:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=((({0: batch}),)))
    with out.open("wb") as file:
        torch.export.save(program, file)
    with out.open("rb") as file:
        return torch.export.load(file).module()


def _onnx(model: nn.Module, x: Tensor, out: Path, blank: Callable[[], nn.Module]) -> Answers:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it and says so less clearly)
    except ImportError as error:
        raise ValueError(f"--as onnx needs {error.name}: pip install 'gratis[export]'") from error
    torch.onnx.export(
        model,
        (x[:2],),
        str(out),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])

    def answers(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return answers


KINDS: dict[str, Callable[[nn.Module, Tensor, Path, Callable[[], nn.Module]], Answers]] = {
    "weights": _weights,
    "torch": _torch,
    "onnx": _onnx,
}


# --- figures


def robustbench(run: Run, about: dict[str, Any], checkpoint: str | None = None) -> dict[str, Any]:
    """The entry of a RobustBench model_info file for a checkpoint's AutoAttack result.

    checkpoint: its name; the one that the recipe's evaluation is of if None.
    about: what a run does not know: title, authors, venue, link, additional_data, ...; keys are
    those of such entries. Accuracies are in percent, as text with two digits.
    Raises ValueError unless `autoattack` was run at the recipe's threat; a footnote says on how
    many of the test images, if not on all.
    """
    results = run.results
    if results is None:
        raise ValueError(f"{run.path} was not evaluated: gratis evaluate {run.path}")
    recipe = from_plain(run.recipe)
    ball = recipe.evaluation_balls()[0]
    checkpoint = checkpoint or recipe.evaluation.checkpoint
    found = [
        entry
        for entry in of_own_images(results, results["evaluations"])
        if (entry["attack"], entry["checkpoint"]) == ("autoattack", checkpoint)
        and (entry["threat"]["norm"], entry["threat"]["eps"]) == (ball.norm, ball.eps)
    ]
    if not found:
        raise ValueError(
            f"{run.path} has no result of autoattack at {ball.norm} {spell(ball.eps)} on "
            f"checkpoint {checkpoint}, which such an entry reports: gratis evaluate "
            f"{run.checkpoint_path(checkpoint)} --attack autoattack"
        )
    entry = max(found, key=lambda e: int(e["images"]["count"]))
    whole = len(load_split(recipe.data, "test"))
    count = entry["images"]["count"]
    note = "" if count == whole else f"first {count} of {whole} test images; "
    version = entry["parameters"].get("version", "standard")
    note += "" if version == "standard" else f"AutoAttack {version}; "
    return {
        "link": None,
        "name": run.path.resolve().name,
        "authors": None,
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": results["data"]["name"],
        "venue": None,
        "architecture": recipe.model.name,
        "eps": spell(ball.eps),
        "clean_acc": f"{100 * entry['clean']['accuracy']:.2f}",
        "reported": f"{100 * entry['robust']['accuracy']:.2f}",
        "autoattack_acc": f"{100 * entry['robust']['accuracy']:.2f}",
        "external": None,
        "unreliable": _unreliable(results, entry),
        "footnote": f"{note}{results['data'].get('note') or ''}".strip("; ") or None,
        **about,
    }


def _unreliable(results: dict[str, Any], entry: dict[str, Any]) -> bool | None:
    """Whether masking checks of AutoAttack speak against its figure, or black-box queries find more
    (M3), which is what RobustBench itself looks at; None where none were made of it.
    """
    checks = [
        check
        for check in results.get("checks", [])
        if "autoattack" in check.get("judged", [])
        and all(check.get(key) == entry.get(key) for key in ("threat", "checkpoint", "images"))
        and check.get("weights") == entry.get("weights")
        and fingerprint(results, check) == fingerprint(results, entry)
    ]
    if not checks:
        return None
    return any(
        check["verdict"] == "evaluation unreliable"
        or any((f["id"], f["verdict"]) == ("M3", "fail") for f in check["findings"])
        for check in checks
    )


def write_json(values: dict[str, Any], out: Path) -> None:
    """Write a new file; ValueError where `out` exists."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(json.dumps(values, indent=2) + "\n")
    except FileExistsError:
        raise ValueError(f"{out} exists and is not overwritten; give another --out") from None
