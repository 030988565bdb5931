"""Warm starts: which encoder a run begins with, and what comes of it."""

import json
from dataclasses import replace

import pytest
import torch

from flows.chain import plan, warmed
from tasks import networks
from tasks.lineage.digests import digest_of_files, digests_of_folder
from tasks.lineage.record import Record
from tasks.pretrain import PretrainParams, pretrain, previous_encoder
from tasks.rows import Rows
from tasks.sections import parse
from tasks.tracking import payload_of

ENCODER = "digits.encoder"


@pytest.fixture
def section(bench):
    return bench.params.pretrain.model_copy(update={"warm_start": True})


def other_data(bench, text="more"):
    """The same rows as another data version."""
    (bench.root / "prepared" / "note.txt").write_text(text)
    content = digest_of_files(digests_of_folder(bench.root / "prepared"))
    return replace(bench.run, data=bench.run.data.model_copy(update={"content": content}))


def schema_of(bench):
    return Rows(bench.root / "prepared").schema


def weights(bench, ref):
    return networks.load(payload_of(bench.tracking.fetch(ref).folder))[1].state_dict()


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_it_starts_from_the_last_encoder_of_other_data(bench, section):
    schema = schema_of(bench)
    assert previous_encoder(bench.tracking, bench.run, section, schema) is None
    first = pretrain._run(bench.run, section)
    bench.tracking.register(ENCODER, first, {})
    assert previous_encoder(bench.tracking, bench.run, section, schema) is None  # the same data
    run = other_data(bench)
    assert previous_encoder(bench.tracking, run, section, schema) == first
    warm = pretrain._run(run, section, previous=first)
    fresh = pretrain._run(run, section)
    assert not equal(weights(bench, warm), weights(bench, fresh))
    record = Record.read(bench.tracking.fetch(warm).folder)
    (parent,) = record.parents
    assert (parent.role, parent.record, parent.model_id) == (
        "previous",
        first.record,
        first.model_id,
    )
    bench.tracking.register(ENCODER, warm, {})
    again = previous_encoder(bench.tracking, run, section, schema)
    assert again == first  # so that nothing is trained when nothing has changed
    assert pretrain._run(run, section, previous=again) == warm


def test_without_a_step_it_is_the_encoder_that_it_starts_from(bench, section):
    none = section.model_copy(update={"fit": section.fit.model_copy(update={"steps": 0})})
    first = pretrain._run(bench.run, section)
    warm, cold = pretrain._run(bench.run, none, previous=first), pretrain._run(bench.run, none)
    assert equal(weights(bench, warm), weights(bench, first))
    assert not equal(weights(bench, cold), weights(bench, first))


@pytest.fixture
def registered(bench, section):
    ref = pretrain._run(bench.run, section)
    bench.tracking.register(ENCODER, ref, {})
    return ref


def found(bench, section, schema):
    return previous_encoder(bench.tracking, other_data(bench), section, schema)


def test_what_labels_say_and_how_columns_are_scaled_may_change(bench, section, registered):
    schema = schema_of(bench)
    schema["classes"] = [*schema["classes"], "new"]
    assert found(bench, section, schema) == registered


@pytest.mark.parametrize("change", [{"tokenizer": "another"}, {"shape": [9, 9, 1]}, {"side": 9}])
def test_another_encoding_is_refused(bench, section, registered, change):
    """A text encoder whose tokenizer changed reads other words under the same numbers."""
    assert found(bench, section, schema_of(bench) | change) is None


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"name": "convnet", "widths": [8]}},
        {"objective": {"name": "contrastive", "temperature": 0.9}},
    ],
)
def test_another_network_or_objective_is_refused(bench, section, registered, change):
    changed = parse(PretrainParams, section.plain() | change)
    assert found(bench, changed, schema_of(bench)) is None


def test_a_damaged_one_is_passed_over(bench, section, registered):
    (path,) = bench.files(registered).rglob("weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert found(bench, section, schema_of(bench)) is None


def test_one_of_a_backfill_is_passed_over(bench, section, registered):
    version = bench.tracking.version(ENCODER, 1)
    bench.tracking.tag_version(version, {"stillmark.backfill": "a.dir"})
    assert found(bench, section, schema_of(bench)) is None


def test_one_of_an_older_release_is_passed_over(bench, section, registered, monkeypatch):
    monkeypatch.setattr("tasks.pretrain.SCHEMA_FILE", "not-there.json")
    assert found(bench, section, schema_of(bench)) is None


def test_the_chain_hands_it_to_pretraining_alone(bench, section, registered, caplog):
    params = bench.params.model_copy(update={"pretrain": section})
    met = {}

    def meet(stage, section, **inputs):
        met[stage.name] = inputs

    run = other_data(bench)
    walker = warmed(meet, bench.tracking, run, params)
    walker(pretrain, section)
    assert met == {"pretrain": {"previous": registered}}
    assert caplog.messages == []
    assert warmed(meet, bench.tracking, run, bench.params) is meet
    assert warmed(meet, bench.tracking, bench.run, params) is meet
    assert "starts fresh" in caplog.text


def test_a_plan_knows_of_it(bench, section, registered):
    params = bench.params.model_copy(update={"pretrain": section})
    run = other_data(bench)
    assert not plan(bench.tracking, run, params)["pretrain"]
    pretrain._run(run, section, previous=registered)
    assert plan(bench.tracking, run, params)["pretrain"]
    assert not plan(bench.tracking, run, bench.params)["pretrain"]


def test_encoders_say_what_their_rows_look_like(bench, registered):
    folder = payload_of(bench.tracking.fetch(registered).folder)
    assert json.loads((folder / "schema.json").read_text()) == schema_of(bench)
