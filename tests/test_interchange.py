"""Models from elsewhere evaluated, ours written for elsewhere."""

import json

import pytest
import torch
from torch import nn

from gratis import train
from gratis.assess import trained
from gratis.cli import main
from gratis.data import load
from gratis.export import KINDS, _unreliable, export
from gratis.given import load_weights
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.training_data import load_split
from tests.recipes import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = tiny("fgsm-rs", "model.mean=[0.3]", "model.std=[0.4]", passes=2)
    return train.run(recipe, tmp_path_factory.mktemp("run") / "run")


# --- ours, elsewhere


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "onnx")) for k in KINDS]
)
def test_an_exported_network_answers_alike_for_any_batch(run, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install 'gratis[export]'")
        pytest.importorskip("onnxscript", reason="pip install 'gratis[export]'")
    out = tmp_path / "net"
    assert export(run, kind, out, "last") <= 1e-5
    x = load("digits", "test").pixels(slice(0, 5))
    recipe = from_plain(run.recipe)
    ours = trained(recipe, load_split(recipe.data, "test"), run.load_checkpoint("last")[0]).eval()
    if kind == "weights":
        state = torch.load(out, weights_only=True)
        assert {"normalize.mean", "normalize.std"} <= state.keys()
        return
    if kind == "torch":
        theirs = torch.export.load(str(out)).module()(x)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        theirs = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(theirs, ours(x), rtol=1e-5, atol=1e-5)


def test_nothing_is_overwritten_and_nothing_left_behind(run, tmp_path):
    out = tmp_path / "net"
    out.write_text("mine")
    with pytest.raises(ValueError, match="not overwritten"):
        export(run, "weights", out, "last")
    assert out.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_an_export_that_answers_otherwise_is_refused(run, tmp_path, monkeypatch):
    def wrong(model, x, out, blank):
        out.write_text("half written")
        return lambda x: model(x) * 1.001

    monkeypatch.setitem(KINDS, "weights", wrong)
    with pytest.raises(ValueError, match=r"logits differ by 0.001 of the largest one"):
        export(run, "weights", tmp_path / "net", "last")
    assert not list(tmp_path.iterdir())


def test_the_command(run, tmp_path, capsys):
    out = tmp_path / "net.pt"
    assert main(["export", str(run.path), "--as", "weights", "--out", str(out)]) == 0
    assert "logits within" in capsys.readouterr().out
    assert main(["export", str(run.path), "--as", "weights", "--out", str(out)]) == 2
    assert main(["export", str(run.path), "--as", "robustbench", "--out", str(out)]) == 2
    assert "no result of autoattack at linf 0.2" in capsys.readouterr().err


def test_a_robustbench_entry(run, tmp_path):
    evaluate = ["evaluate", str(run.path), "--attack", "autoattack", "--limit", "12"]
    assert main([*evaluate, "--checks", "none"]) == 0
    out = tmp_path / "net.json"
    command = ["export", str(run.path), "--as", "robustbench", "--out", str(out)]
    assert main([*command, "--about", "authors=A. Author", "venue=here"]) == 0
    entry = json.loads(out.read_text())
    (found,) = [e for e in run.results["evaluations"] if e["attack"] == "autoattack"]
    assert entry["autoattack_acc"] == f"{100 * found['robust']['accuracy']:.2f}"
    assert entry["clean_acc"] == f"{100 * found['clean']['accuracy']:.2f}"
    assert (entry["eps"], entry["authors"], entry["venue"]) == ("0.2", "A. Author", "here")
    assert entry["footnote"] == "first 12 of 500 test images"
    assert {p["attack"] for p in found["parts"]} <= {"apgd-ce", "apgd-t", "fab-t", "square"}


def test_only_checks_of_autoattack_speak_for_its_figure():
    of = {"threat": {"norm": "linf", "eps": 0.2}, "checkpoint": "last", "images": {"count": 12}}
    of["weights"] = "c0ffee"

    def check(judged, verdict, m3="pass", **changed):
        findings = [{"id": "M1", "verdict": "fail"}, {"id": "M3", "verdict": m3}]
        told = {} if judged is None else {"judged": judged}
        return {**of, **told, "verdict": verdict, "findings": findings, **changed}

    def found(*checks):
        return _unreliable({"data": {"fingerprint": "f00d"}, "checks": list(checks)}, of)

    good = check(["autoattack"], "signs: M1")
    other = check(["pgd-2"], "evaluation unreliable", "fail")
    assert found() is found(other) is found(check(None, "signs: M1")) is None
    assert found(good) is found(good, other) is False
    assert found(good | {"weights": "0ld"}) is found(good | {"fingerprint": "beef"}) is None
    assert found(check(["fgsm", "autoattack"], "evaluation unreliable"), good) is True
    assert found(check(["autoattack"], "signs: M1, M3", "fail")) is True


# --- theirs, here


def build(classes, channels, image_size):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes)
    )


def no_logits(classes, channels, image_size):
    return nn.Flatten()


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(4)
    net = build(10, 1, 8)
    file = tmp_path / "theirs.pt"
    # as a RobustBench checkpoint: nested, behind a wrapper's prefix
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, file
    )
    return net, file


def test_what_is_set_of_the_model_reaches_it(tmp_path):
    out = tmp_path / "theirs"
    command = ["evaluate", f"{__name__}:build", "--data", "mnist"]
    of = ["--set", "data.name=digits", "data.batch_size=50", "model.mean=[0.3]", "model.std=[0.4]"]
    assert main([*command, "--out", str(out), *of, "--attack", "fgsm", "--limit", "10"]) == 0
    kept = Run.open(out).recipe["model"]
    assert (kept["mean"], kept["std"], kept["options"]) == ([0.3], [0.4], {})


def test_a_model_of_ones_own_is_evaluated(tmp_path, weights, capsys):
    net, file = weights
    out = tmp_path / "theirs"
    model = f"{__name__}:build"
    command = ["evaluate", model, "--data", "digits", "--weights", str(file), "--out", str(out)]
    limit = ["--limit", "40", "--attack", "pgd-2", "--eps", "0.05"]
    assert main([*command, *limit]) == 0
    printed = capsys.readouterr().out
    assert model[:16] in printed  # a narrow terminal breaks the rest
    assert "masking checks of pgd-2 at linf 0.05, 40 test images, checkpoint last (" in printed
    (entry,) = Run.open(out).results["evaluations"]
    test = load("digits", "test")
    with torch.no_grad():
        right = (net(test.pixels(slice(0, 40))).argmax(1) == test.y[:40]).sum()
    assert entry["clean"]["correct"] == int(right)
    assert (out / "report.html").stat().st_size > 10_000
    # it is a run like any other from now on
    assert main(["evaluate", str(out), "--limit", "10", "--attack", "fgsm"]) == 0
    assert main([*command, *limit]) == 2
    assert f"gratis evaluate {out}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "digits"], "--out DIR where the outcome is kept"),
        (["--out", "OUT"], "--data RECIPE says which images"),
        (["--data", "digits", "--out", "OUT", "--weights", "nowhere.pt"], "no file nowhere.pt"),
    ],
)
def test_what_is_missing_is_said(tmp_path, change, message, capsys):
    change = [str(tmp_path / "out") if word == "OUT" else word for word in change]
    assert main(["evaluate", f"{__name__}:build", *change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_logits_is_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["evaluate", f"{__name__}:no_logits", "--data", "digits", *out]) == 2
    assert "logits [2, 10] are needed" in capsys.readouterr().err


def test_flags_for_models_are_refused_with_a_run(run, capsys):
    assert main(["evaluate", str(run.path), "--data", "digits"]) == 2
    assert "--data go with a model module:function" in capsys.readouterr().err
    for setting in ("seed=3", "data.name=mnist", "data=mnist"):
        assert main(["evaluate", str(run.path), "--set", "data.root=x", setting]) == 2
        assert "of a run --set changes data.root, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0.weight": torch.zeros(4, 1, 3, 3)}, r"lacks 0.bias, 3.bias, 3.weight and has nothing"),
        ({"epoch": 3}, r"holds no state dict \(found: epoch\)"),
        ([torch.zeros(2)], r"holds no state dict \(found: list\)"),
        (nn.Linear(1, 1), r"tensors alone"),
    ],
)
def test_weights_that_do_not_fit_are_explained(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(build(10, 1, 8), tmp_path / "w.pt")


@pytest.mark.parametrize("path", [(), ("state_dict",), ("model", "state_dict")], ids=str)
def test_weights_are_found_wherever_they_lie(tmp_path, path):
    trained, net = build(10, 1, 8), build(10, 1, 8)
    for value in trained.parameters():
        value.data.add_(1)
    content = dict(trained.state_dict())
    for name in reversed(path):
        content = {"epoch": 3, name: content}
    torch.save(content, tmp_path / "w.pt")
    load_weights(net, tmp_path / "w.pt")
    for one, other in zip(net.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_of_another_shape_are_explained(tmp_path):
    torch.save(build(9, 1, 8).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="size mismatch"):
        load_weights(build(10, 1, 8), tmp_path / "w.pt")


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    net, again = build(10, 1, 8), build(10, 1, 8)
    safetensors.save_file(net.state_dict(), tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors")
    assert torch.equal(net[0].weight, again[0].weight)
