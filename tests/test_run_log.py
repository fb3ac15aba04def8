"""A run's log: read while it is written, torn lines repaired, what was done again superseded."""

from gratis.run import Run
from tests.run_directories import run

__all__ = ["run"]  # a fixture, asked for by name


def test_records_come_back_in_order(run: Run) -> None:
    records = [{"kind": "step", "update": i, "loss": i / 3, "note": "ä\u2028\n"} for i in range(5)]
    writer = run.log_writer()
    for record in records:
        writer.write(record)
    writer.close()
    assert run.log() == records
    assert len((run.path / "log.jsonl").read_bytes().splitlines()) == 5


def test_a_flushed_record_survives_a_kill(run: Run) -> None:
    writer = run.log_writer()
    writer.write({"kind": "step", "update": 1})
    writer.flush()
    assert run.log() == [{"kind": "step", "update": 1}]  # read while the writer still holds it
    writer.close()


def test_a_torn_last_line_is_left_out_and_repaired(run: Run) -> None:
    whole = b'{"kind": "step", "update": 1}\n'
    torn = b'{"kind": "step", "update": 22}'
    path = run.path / "log.jsonl"
    for cut in range(1, len(torn)):
        path.write_bytes(whole + torn[:cut])
        assert [r["update"] for r in run.log()] == [1]
        writer = run.log_writer()
        writer.write({"kind": "step", "update": 3})
        writer.close()
        assert [r["update"] for r in run.log()] == [1, 3]


def test_a_whole_last_line_without_its_newline_is_kept(run: Run) -> None:
    (run.path / "log.jsonl").write_bytes(b'{"kind": "step", "update": 1}')
    writer = run.log_writer()
    writer.write({"kind": "step", "update": 2})
    writer.close()
    assert [r["update"] for r in run.log()] == [1, 2]


def test_what_a_resumed_run_did_again_is_superseded(run: Run) -> None:
    writer = run.log_writer()
    for update in range(1, 7):
        writer.write({"kind": "step", "update": update, "life": 1})
    writer.write({"kind": "note", "life": 1})  # belongs to no update: stays
    writer.write({"kind": "resumed", "update": 4})
    for update in range(5, 9):
        writer.write({"kind": "step", "update": update, "life": 2})
    writer.write({"kind": "resumed", "update": 2})
    writer.write({"kind": "step", "update": 3, "life": 3})
    writer.close()
    steps = [(r["update"], r["life"]) for r in run.log() if r["kind"] == "step"]
    assert steps == [(1, 1), (2, 1), (3, 3)]
    assert [r["update"] for r in run.log() if r["kind"] == "resumed"] == [2]
    assert [r for r in run.log() if r["kind"] == "note"] == [{"kind": "note", "life": 1}]
