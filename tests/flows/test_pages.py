"""Both pages in a real browser, as a person sees them; the pictures go where KEEP says.

`KEEP=docs/pages pytest -m slow tests/flows/test_pages.py` takes those of docs/operations.md anew.
"""

import os
import struct
from pathlib import Path

import pytest

from tests.browser import browser, program
from tests.flows.machine import copied, running

LARGEST_BYTES = 150_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def machine(fresh, tmp_path_factory):
    with running(copied(fresh, tmp_path_factory.mktemp("pages") / "project")) as found:
        yield found


@pytest.fixture(scope="module")
def run(machine):
    """A finished retraining."""
    made = machine.trigger("retrain/retrain", trigger="data", why="12 rows arrived")
    machine.wait(made, "COMPLETED")
    return made


@pytest.fixture(scope="module")
def page():
    with browser() as found:
        yield found


@pytest.fixture
def keep(tmp_path):
    """Takes a picture, and sees that there is one and that it is no larger than a page of docs."""
    folder = Path(os.environ.get("KEEP", tmp_path)).resolve()

    def take(page, name):
        page.picture(folder / name)
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">I", content[16:20])[0] >= 1000  # pixels across
        assert len(content) <= LARGEST_BYTES

    return take


def test_prefects_page_of_a_run(machine, run, page, keep):
    home = machine.addresses["prefect"].removesuffix("/api")
    page.open(f"{home}/runs/flow-run/{run}", "Completed", " Task runs", "retrain")
    keep(page, "prefect-run.png")
    assert page.click("Artifacts")
    for key in ("outcome", "trade-off", "models"):
        page.wait_for(key)


def test_prefects_page_of_what_a_run_made(machine, run, page, keep):
    home = machine.addresses["prefect"].removesuffix("/api")
    wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    ids = {one["key"]: one["id"] for one in machine.ask("/artifacts/filter", wanted)}
    page.open(f"{home}/artifacts/artifact/{ids['models']}", "control", "teacher", "edge")
    page.open(f"{home}/artifacts/artifact/{ids['outcome']}", "12 rows arrived")
    page.open(f"{home}/artifacts/artifact/{ids['progress-distill']}", "progress-distill", "100")
    page.open(f"{home}/artifacts/artifact/{ids['trade-off']}", "trade-off", "image")
    shown = "[...document.images].some(one => one.complete && one.naturalWidth > 300)"
    page.until(lambda: page.run(shown))
    keep(page, "prefect-trade-off.png")


def test_mlflows_page_of_a_model(machine, run, page, keep):
    page.open(f"{machine.addresses['mlflow']}/#/models/digits.edge", "digits.edge", "Version 1")
    page.close_dialogs()
    assert page.click("Model training")
    page.open(f"{machine.addresses['mlflow']}/#/models/digits.edge", "Version 1", "champion")
    page.close_dialogs()
    keep(page, "mlflow-model.png")


def test_mlflows_page_of_the_runs(machine, run, page, keep):
    page.open(f"{machine.addresses['mlflow']}/#/experiments/1/runs", "matching runs", "retrain")
    page.close_dialogs()
    keep(page, "mlflow-runs.png")
