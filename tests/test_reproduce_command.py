"""The command `gratis reproduce`: what it lists, makes and answers."""

import subprocess
import sys

import pytest

from gratis.cli import main
from tests.tables import TABLES


def test_the_command_lists_makes_and_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    assert main(["reproduce"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in TABLES)
    command = ["reproduce", "advprop-a1", "--rows", "fgsm"]
    assert main([*command, "--scale", "smoke"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("smoke: not a result") == 3, "on either line, and below"
    assert "76.46" in printed
    assert (tmp_path / "runs/reproduce/advprop-a1/smoke/table.html").exists()
    assert (tmp_path / "runs/reproduce/advprop-a1/smoke/fgsm/results.json").exists()
    assert main(command) == 1
    assert "GRATIS_DATA" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fast-tabel1"], "did you mean fast-table1"),
        (["fast-table1", "--rows", "fre-8"], "did you mean free-8"),
        (["fast-table1", "--set", "budget.pases=3"], "did you mean passes"),
    ],
)
def test_unusable_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def test_listing_does_not_wait_for_torch(tmp_path):
    program = (
        "import sys\nfrom gratis.cli import main\n"
        "assert main(['reproduce']) == 0 and main(['reproduce', 'x']) == 2\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'slow import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gratis.train.run", interrupted)
    out = ["--scale", "smoke", "--out", str(tmp_path)]
    assert main(["reproduce", "fast-table1", *out]) == 130
    assert "go on with the same command" in capsys.readouterr().err
