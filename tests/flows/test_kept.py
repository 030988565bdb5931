"""What is around a service that is kept running; test_up.py keeps some."""

from flows import kept as module
from flows.kept import last_line, make_room


def test_a_log_that_grew_long_makes_room_and_one_older_is_kept(tmp_path, monkeypatch):
    log = tmp_path / "mlflow.log"
    make_room(log)
    monkeypatch.setattr(module, "LOG_BYTES", 10)
    log.write_text("0123456789")
    make_room(log)
    assert log.exists()
    for text in ("first" * 3, "second" * 2):
        log.write_text(text)
        make_room(log)
    assert not log.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.log.1"]
    assert (tmp_path / "mlflow.log.1").read_text() == "second" * 2


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == "it said nothing"
    log.write_text("first\nthe cause\n\n  \n")
    assert last_line(log) == "the cause"
