"""New data keeps old promises: what happens to rows, stages and the champion when data grows."""

import json

import pyarrow.parquet
import pytest

from tasks.ledger import Ledger
from tasks.tracking import STAGE_TAG, Tracking
from tests.growth import grow


def manifest(project):
    """Split and label by row."""
    table = pyarrow.parquet.read_table(project.root / "prepared" / "manifest.parquet")
    columns = (table[name].to_pylist() for name in ("row", "split", "label"))
    return {row: (split, label) for row, split, label in zip(*columns, strict=True)}


def said(project, *words):
    done = project.stillmark(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_new_data_keeps_old_promises(untrained):
    first = said(untrained, "retrain")
    assert first["outcome"] == "promoted"
    before = manifest(untrained)
    grow(untrained)
    second = said(untrained, "retrain")
    after = manifest(untrained)

    assert len(after) > len(before)
    assert {row: after[row][0] for row in before} == {row: before[row][0] for row in before}

    tested = {row for row, (split, label) in after.items() if split == "test" and label}
    assert len(tested) > first["evaluation"]["rows"]
    assert second["evaluation"]["rows"] == len(tested)
    tracking = Tracking(untrained.uri, untrained.root / ".stillmark")
    runs = [run for run in tracking.runs("digits") if run.data.tags.get(STAGE_TAG) == "promote"]
    folder = tracking.report(runs[-1].info.run_id)
    evidence = pyarrow.parquet.read_table(folder / "predictions.parquet")
    assert set(evidence["row"].to_pylist()) == tested
    assert "champion" in evidence.column_names
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["champion"]["version"] == first["versions"]["edge"]
    ledger = Ledger(f"sqlite:///{untrained.root / 'ledger.db'}")
    assert ledger.entries()[0].version == first["versions"]["edge"]

    untrained.change("quantize.method.calibration_rows", 64)
    plan = said(untrained, "check")
    assert {name for name, what in plan.items() if what == "run"} == {"quantize", "evaluate"}
