"""Records of verdicts: what is tried again, what counts, and the cross-check."""

import json
from dataclasses import asdict, replace

import pytest

from gratis.cli import main
from gratis.data import load
from gratis.verify import check, image, record, verify_run
from gratis.verify.solver import INTEGER, LINEAR
from tests.verify_problems import BALL, SETTINGS, integers, linear, lines_of, trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("verify"), passes=10)


@pytest.fixture
def images(run):
    for path in (run.path / "verify").glob("*"):
        path.unlink()
    return load("digits", "test")


def undecided(run, *indices):
    """Make records say that nothing was found out."""
    path = run.path / "verify" / "linf-0.05.jsonl"
    records = lines_of(run)
    for each in records:
        if each["index"] in indices:
            each["verdict"] = "undecided"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


def test_only_undecided_images_are_tried_again_and_only_harder(run, images, monkeypatch):
    monkeypatch.setattr(image, "installed", lambda: ())
    first = verify_run(run, BALL, SETTINGS, limit=5, images=images)
    undecided(run, 1, 3)
    shorter = replace(SETTINGS, time_limit=2)
    for settings in (SETTINGS, shorter):
        again = verify_run(run, BALL, settings, limit=5, images=images)
        assert len(lines_of(run)) == 5
        assert again["counts"]["undecided"] == 2
    longer = verify_run(run, BALL, replace(SETTINGS, time_limit=6), limit=5, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 3, 4, 1, 3]
    assert longer["counts"] == first["counts"]
    verify_run(run, BALL, shorter, limit=5, images=images)
    assert len(lines_of(run)) == 7, "decided for good"


@linear
@integers
def test_new_solvers_try_again(run, images, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(image, "installed", lambda: ())
        verify_run(run, BALL, SETTINGS, limit=3, images=images)
    undecided(run, 2)
    verify_run(run, BALL, SETTINGS, limit=3, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 2]
    assert lines_of(run)[-1]["solvers"] == [LINEAR, INTEGER]


@pytest.mark.parametrize("formerly", [SETTINGS.time_limit, 60.0])
def test_records_of_schema_1_count(run, images, monkeypatch, formerly):
    monkeypatch.setattr(image, "installed", lambda: ())
    summary = verify_run(run, BALL, SETTINGS, limit=3, images=images)
    question = {
        "schema": 1,
        **{key: summary[key] for key in ("network_sha256", "threat", "least_margin", "data")},
        "settings": asdict(replace(SETTINGS, time_limit=formerly)),
    }
    records = lines_of(run)
    for each in records:
        del each["time_limit"], each["solvers"]
        each["question"] = record._key(question)
        each["seconds"] = {k: s for k, s in each["seconds"].items() if k not in ("lp", "milp")}
    path = run.path / "verify" / "linf-0.05.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    undecided(run, 0)
    again = verify_run(run, BALL, SETTINGS, limit=4, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 3]
    assert again["counts"]["undecided"] == 1
    verify_run(run, BALL, replace(SETTINGS, time_limit=90.0), limit=4, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 3, 0]


def test_what_a_cross_check_takes():
    def one(index, rung, seconds, verdict="safe"):
        return {"index": index, "rung": rung, "verdict": verdict, "seconds": {rung: seconds}}

    easy = [one(i, "crown", 0.1) for i in range(50)]
    hard = [one(100 + i, "branch", float(i)) for i in range(10)]
    other = [one(200, "branch", 99.0, "undecided"), one(201, "clean", 0.1, "misclassified")]
    picked = [r["index"] for r in check.chosen(easy + hard + other, 9)]
    assert picked == [109, 108, 107, 106, 105, 104, 0, 16, 33]
    assert len(check.chosen(easy + hard[:2], 9)) == 9
    assert len(check.chosen(easy[:1] + hard, 9)) == 9
    assert len(check.chosen(easy[:1] + hard[:1], 9)) == 2
    assert check.chosen(other, 9) == []


@linear
@integers
def test_the_cross_check(run, images, capsys):
    command = ["verify", str(run.path), "--eps", "0.05", "--limit", "8", "--time-limit", "60"]
    assert main([*command, "--cross-check", "2"]) == 0
    assert "cross-check by SCIP: 2 agreed, 0 disagreed" in capsys.readouterr().out
    path = run.path / "verify" / "linf-0.05.json"
    found = json.loads(path.read_text())["cross_check"]
    assert found["counts"]["agreed"] == len(found["images"]) == 2
    assert all(each["targets_proved"] == 9 for each in found["images"] if each["verdict"] == "safe")
    assert main(command) == 0
    assert json.loads(path.read_text())["cross_check"] == found, "kept by a later command"
    # a record that says the contrary
    records = lines_of(run)
    wrong = next(r for r in records if r["rung"] == "crown")
    wrong["verdict"], wrong["rung"], wrong["seconds"]["branch"] = "unsafe", "branch", 1e3
    log = run.path / "verify" / "linf-0.05.jsonl"
    log.write_text("".join(json.dumps(each) + "\n" for each in records))
    capsys.readouterr()
    assert main([*command, "--cross-check", "1"]) == 1
    printed = capsys.readouterr().out
    assert f"image {wrong['index']}, unsafe by branch and bound: disagreed" in printed


@linear
@integers
def test_a_proof_that_a_counterexample_refutes_is_overturned(run, images, capsys):
    command = ["verify", str(run.path), "--eps", "0.05", "--limit", "20", "--time-limit", "60"]
    assert main(command) == 0
    path, log = (run.path / "verify" / f"linf-0.05.{end}" for end in ("json", "jsonl"))
    records = lines_of(run)
    before = json.loads(path.read_text())["counts"]
    wrong = next(r for r in records if r["verdict"] == "unsafe")
    wrong |= {"verdict": "safe", "rung": "branch", "point": None, "margins": None}
    wrong["seconds"]["branch"] = 1e3
    log.write_text("".join(json.dumps(each) + "\n" for each in records))
    assert main([*command, "--cross-check", "1"]) == 1
    summary = json.loads(path.read_text())
    assert summary["counts"] == before, "the image does not count as verified"
    assert summary["cross_check"]["counts"]["disagreed"] == 1
    last = lines_of(run)[-1]
    assert (last["index"], last["verdict"]) == (wrong["index"], "unsafe")
    assert last["point"] is not None
    assert min(last["margins"]) > 0
    assert main(command) == 0
    assert json.loads(path.read_text())["counts"] == before, "for later commands too"


def test_proofs_of_earlier_searches_are_made_anew(run, images, monkeypatch):
    monkeypatch.setattr(image, "installed", lambda: ())
    summary = verify_run(run, BALL, SETTINGS, limit=4, images=images)
    about = {key: summary[key] for key in ("network_sha256", "threat", "least_margin", "data")}
    records = lines_of(run)
    for each in records:
        each["question"] = record._key({"schema": 2, **about})
    safe = [each for each in records if each["verdict"] == "safe"]
    safe[0]["rung"] = "branch"
    log = run.path / "verify" / "linf-0.05.jsonl"
    log.write_text("".join(json.dumps(each) + "\n" for each in records))
    verify_run(run, BALL, SETTINGS, limit=4, images=images)
    assert [r["index"] for r in lines_of(run)[4:]] == [safe[0]["index"]]


def test_missing_solvers_are_named(run, images, capsys, monkeypatch):
    monkeypatch.setattr(image, "installed", lambda: ())
    command = ["verify", str(run.path), "--eps", "0.05", "--limit", "2"]
    assert main([*command, "--cross-check", "1"]) == 2
    message = "needs highspy and pyscipopt, which are not both installed: pip install 'gratis["
    assert message in capsys.readouterr().err
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not tried: highspy, pyscipopt (pip install 'gratis[verify]')" in printed
    summary = json.loads((run.path / "verify" / "linf-0.05.json").read_text())
    assert summary["solvers"] == {"highspy": False, "pyscipopt": False}
