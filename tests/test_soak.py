"""The short form of `make soak`: without the servers of `up`."""

import signal

import pytest

from tests.soak import Soak


@pytest.mark.timeout(900)
def test_growing_data_and_a_kill_leave_nothing_behind(tmp_path):
    soak = Soak.at(tmp_path / "project", seed=0)
    code, _, _ = soak.command("watch", "--run", "--json", killed_after=15)
    assert code in {0, -signal.SIGKILL}
    soak.grow(6)
    assert soak.retrain() == "promoted", soak.said_last
    assert soak.retrain() == "nothing"
    assert list(soak.left()) == []
    soak.said("gc")
    assert soak.said("gc", "--dry-run")["bytes"] == 0
    assert list(soak.disagreements()) == []
