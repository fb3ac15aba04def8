"""The tables of distributed training, made by the processes that they are about."""

import json
import os
import subprocess
import sys

import pytest

from tests.two_processes import needs_gloo

pytestmark = [needs_gloo, pytest.mark.slow]
TABLES = ("dat-cifar10", "dat-imagenet", "dat-scaling")


def test_two_processes_make_the_tables(tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "gratis", "reproduce", *TABLES, "--scale", "smoke", "--out", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("written:") == len(TABLES)
    for name in TABLES:
        record = json.loads((tmp_path / name / "smoke" / "table.json").read_text())
        assert [row["status"] for row in record["rows"]] == ["done"] * len(record["rows"]), record
        for row in record["rows"]:
            assert "2 processes" in row["conditions"]
            directory = tmp_path / name / "smoke" / row["directory"]
            results = json.loads((directory / "results.json").read_text())
            budget = results["budget"]
            assert budget["predicted_passes"] == budget["metered_passes"]
