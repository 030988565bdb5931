import pytest

from tasks.errors import RegistryError


def test_registration_happens_once_per_content(bench, toy):
    good, lazy = toy.make(bench), toy.make(bench, "lazy")
    first = bench.tracking.register("digits.edge", good, {"why": "test"})
    assert (first.name, first.version, first.model) == ("digits.edge", 1, good)
    assert bench.tracking.register("digits.edge", good, {}) == first
    second = bench.tracking.register("digits.edge", lazy, {})
    assert second.version == 2
    assert bench.tracking.register("digits.edge", good, {}) == first
    newest, oldest = bench.tracking.versions("digits.edge")
    assert (int(newest.version), int(oldest.version)) == (2, 1)
    assert oldest.tags["why"] == "test"
    assert oldest.tags["stillmark.content"] == good.content
    assert oldest.tags["stillmark.record"] == good.record
    assert oldest.run_id == good.run_id
    assert bench.tracking.ref_of(oldest) == good
    assert bench.tracking.registered() == ["digits.edge"]


def test_a_pending_model_is_never_registered(bench, toy):
    """MLflow itself would: a version, READY, without a single file."""
    ref = toy.make(bench)
    empty = bench.tracking.new_model(bench.run.project, ref.run_id, "edge", ref.key)
    pending = ref.model_copy(update={"model_id": empty})
    with pytest.raises(RegistryError):
        bench.tracking.register("digits.edge", pending, {})
    assert bench.tracking.versions("digits.edge") == []


def test_a_report_is_never_registered(bench, toy):
    report = toy.make(bench).model_copy(update={"model_id": None})
    with pytest.raises(RegistryError, match="is a report"):
        bench.tracking.register("digits.edge", report, {})
    assert bench.tracking.registered() == []


def test_an_alias_has_one_holder(bench, toy):
    tracking = bench.tracking
    assert tracking.holder("digits.edge", "champion") is None
    first = tracking.register("digits.edge", toy.make(bench), {})
    assert tracking.holder("digits.edge", "champion") is None
    tracking.set_alias(first, "champion")
    assert tracking.holder("digits.edge", "champion") == first
    second = tracking.register("digits.edge", toy.make(bench, "lazy"), {})
    tracking.set_alias(second, "champion")
    assert tracking.holder("digits.edge", "champion") == second


def test_a_version_of_other_origin_is_named(bench, toy):
    bench.tracking.client.create_registered_model("digits.edge")
    bench.tracking.client.create_model_version("digits.edge", source=str(bench.root))
    (foreign,) = bench.tracking.versions("digits.edge")
    with pytest.raises(RegistryError, match=r"digits\.edge version 1 was not registered by Still"):
        bench.tracking.ref_of(foreign)
    # It stands in nobody's way.
    assert bench.tracking.register("digits.edge", toy.make(bench), {}).version == 2
