import io
import threading
import time
from uuid import uuid4

import pytest

from tasks import progress
from tasks.progress import StageProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_without_a_terminal_lines_come_every_few_seconds(clock, capsys):
    with StageProgress("teach") as shown:
        for at in range(1, 101):
            clock.now += 0.2
            shown(at, 100, {"loss": 0.5})
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 4  # 20 seconds, one line every 5
    assert lines[0] == "teach     25/100  loss 0.500  15 s left"
    assert last == "teach     done in 20.0 s"


def test_a_reused_stage_says_so(capsys):
    with StageProgress("prune", reused=True):
        pass
    assert capsys.readouterr().err == "prune     reused\n"


def test_a_failed_stage_is_not_called_done(capsys):
    with pytest.raises(ValueError, match="bug"), StageProgress("teach"):
        raise ValueError("bug")
    assert "done" not in capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with StageProgress("teach") as shown:
        shown(30, 100, {"loss": 0.25})
    text = terminal.getvalue()
    assert "teach" in text
    assert "100/100" in text
    assert "loss 0.250" in text
    assert "done in" not in text


@pytest.fixture
def artifact(monkeypatch):
    """What Prefect is sent, as if inside a task run."""
    sent = []
    number = uuid4()

    def create(percent, *, key, description):
        sent.append((key, percent))
        return number

    def update(found, *, progress):
        assert found == number
        sent.append(progress)

    monkeypatch.setattr(progress.TaskRunContext, "get", object)
    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(progress, "update_progress_artifact", update)
    return sent


def test_prefect_shows_progress_that_rises_to_100(clock, artifact):
    with StageProgress("distill") as shown:
        for at in range(1, 41):
            clock.now += 0.5
            shown(at, 40, {})
    key, *percents = artifact
    assert key == ("progress-distill", 0.0)
    assert percents == sorted(percents)
    assert percents[-1] == 100.0
    assert len(percents) == 11  # every 2 of 20 seconds, and the end


def test_a_failed_stage_does_not_reach_100(artifact):
    with pytest.raises(ValueError, match="bug"), StageProgress("distill"):
        raise ValueError("bug")
    assert 100.0 not in artifact


def test_steps_of_zero_are_no_division_by_zero(clock, artifact):
    with StageProgress("distill") as shown:
        clock.now += 60
        shown(0, 0, {})
    assert artifact[-1] == 100.0


def test_a_page_that_is_away_fails_no_stage_and_is_told_once(clock, artifact, monkeypatch, caplog):
    def away(*_, **__):
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(progress, "create_progress_artifact", away)
    with StageProgress("distill") as shown:
        for at in range(1, 41):
            clock.now += 0.5
            shown(at, 40, {})
    assert artifact == []
    (line,) = caplog.messages
    assert line == "Prefect's page does not show how distill goes: nobody there"


def test_no_stage_waits_for_a_page_that_hangs(clock, artifact, monkeypatch):
    back = threading.Event()
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: back.wait(60))
    monkeypatch.setattr(progress, "LAST_SECONDS", 0.1)
    began = time.monotonic()
    with StageProgress("distill") as shown:
        for at in range(1, 41):
            clock.now += 0.5
            shown(at, 40, {})
    assert time.monotonic() - began < 10
    back.set()
