"""The short form of `make soak`: without the servers of `up`."""

import signal

from tests.soak import Soak


def test_growing_data_and_a_kill_leave_nothing_behind(tmp_path):
    soak = Soak.at(tmp_path / "project", seed=0)
    code, _, _ = soak.command("watch", "--run", "--json", killed_after=15)
    assert code in {0, -signal.SIGKILL}
    soak.grow(6)
    assert soak.retrain() == "promoted"
    assert soak.retrain() == "nothing"
    assert list(soak.left()) == []
    assert list(soak.disagreements()) == []
    soak.said("gc")
    assert soak.said("gc", "--dry-run")["bytes"] == 0
    assert list(soak.disagreements()) == []
