"""The mark of `verify`."""

import pytest

from tests.benchmarks import verify


def test_what_is_measured_is_a_verification_that_finds_damage(tmp_path):
    lineage = verify.made_lineage(tmp_path, megabytes=0.1)
    report = lineage.verify()
    assert report.passed, report.problems
    hashed = {one.path for one in report.findings if one.kind in {"file", "record"}}
    named = (path for path in lineage.files if path.name != "registered_model_meta")
    assert hashed - {None} == {str(path) for path in named}
    path = next(path for path in lineage.files if path.suffix == ".bin")
    path.write_bytes(path.read_bytes()[:-1])
    (found,) = lineage.verify().problems
    assert found.path == str(path)


@pytest.mark.benchmark
def test_the_mark_is_met(tmp_path):
    found = verify.measured(verify.made_lineage(tmp_path))
    assert found.met, found.plain()
