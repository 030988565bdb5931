"""The data stage and its time limit."""

import contextlib
import time

import psutil
import pytest

from tasks.compute import ComputeParams
from tasks.data import data
from tasks.errors import TimeLimitError

HANGS = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(__file__).with_name("below").write_text(str(child.pid))
child.wait()
"""


def test_a_dvc_that_hangs_is_stopped_with_all_that_it_started(tmp_path, monkeypatch, inside):
    package = tmp_path / "dvc"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(HANGS)
    for folder in (".dvc", "data"):
        (tmp_path / folder).mkdir()
    for file in ("data.dvc", "data/rows.csv"):
        (tmp_path / file).touch()
    inside(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"^stage data took longer than") as error:
        data.fn(ComputeParams(time_limit_minutes=3 / 60))
    assert time.monotonic() - began < 30
    assert "\n" not in str(error.value)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int((package / "below").read_text())).wait(20)
