"""The marks of `lineage`."""

import pytest

from tasks.impact import impact
from tasks.trace import trace
from tests.benchmarks import lineage


def test_made_records_are_a_graph_that_can_be_asked(tmp_path):
    catalogue, versions = lineage.made(tmp_path, 3)
    known = lineage.fill_rows(catalogue, 3, 50)
    edges = [version for version in versions if version.name == "digits.edge"]
    models = [node for node in trace(catalogue, edges[0]).nodes if node.kind == "model"]
    assert len(models) == 7
    data = impact(catalogue, data=lineage.data_of(1).raw)
    assert len(data.models) == len(lineage.CHAIN)
    one, every = (impact(catalogue, row=row) for row in (known[1], lineage.SHARED_ROW))
    assert {found.record for found in one.models} == {found.record for found in data.models}
    assert len(every.models) == len(versions) == 30
    assert [held.version for held in every.holders] == [3]
    assert every.unknown == ()
    catalogue.close()


def test_a_rebuild_reads_real_entries(tmp_path):
    catalogue = lineage.stored(tmp_path, 4)
    assert catalogue.rebuild() == 4
    artifacts = catalogue.index.artifacts(catalogue.index.digests())
    assert [len(one.versions) for one in artifacts.values()] == [1] * 4
    assert catalogue.index.unreadable() == catalogue.index.missing() == []
    catalogue.close()


@pytest.mark.benchmark
@pytest.mark.parametrize("measurement", lineage.MEASUREMENTS, ids=lambda one: one.__name__)
def test_the_mark_is_met(measurement, tmp_path):
    for finding in measurement(tmp_path):
        assert finding.met, finding.plain()
