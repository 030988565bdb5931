import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.errors import ArtifactError
from tasks.lineage.digests import digest_of_files, digests_of_folder
from tasks.lineage.record import FILE_NAME, Code, Parent, Record
from tasks.refs import DataRef

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# Numbers in the range that RFC 8785 writes without an exponent end below 2^53.
FLOATS = st.floats(-1e15, 1e15, allow_nan=False)
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | FLOATS
PLAIN = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | NUMBERS | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
SHA = "0" * 64


def record(**changes):
    plain = {
        "stage": "teach",
        "role": "teacher",
        "key": "1" * 64,
        "data": DataRef(raw="r.dir", prepared="p.dir", manifest=SHA, content=SHA),
        "code": Code(digest=SHA, commit=None, clean=False),
        "parameters": {"steps": 10, "learning_rate": 2e-3},
        "environment": {"threads": 1, "packages": {"torch": "2.13.0"}},
        "parents": (Parent(role="encoder", record=SHA, model_id="m-1"),),
        "files": {},
        "content": SHA,
        "metrics": {"accuracy": 0.5},
    }
    return Record(**(plain | changes))


@pytest.fixture
def stored(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "deep" / "network.json").write_bytes(b"{}")
    files = digests_of_folder(tmp_path)
    found = record(files=files, content=digest_of_files(files))
    found.write(tmp_path)
    return tmp_path, found


@given(
    parameters=PLAIN,
    environment=PLAIN,
    metrics=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    parents=st.lists(
        st.builds(Parent, role=TEXT, record=TEXT, model_id=st.none() | TEXT), max_size=3
    ),
    commit=st.none() | TEXT,
)
def test_a_record_survives_writing_and_reading(
    tmp_path_factory, parameters, environment, metrics, parents, commit
):
    folder = tmp_path_factory.getbasetemp()
    code = Code(digest=SHA, commit=commit, clean=True)
    written = record(
        parameters=parameters,
        environment=environment,
        metrics=metrics,
        parents=tuple(parents),
        code=code,
    )
    written.write(folder)
    found = Record.read(folder)
    assert found == written
    assert found.digest == written.digest
    assert hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest() == written.digest


@pytest.mark.parametrize("value", [1e16, -(2.0**60)])
def test_large_numbers_survive_too(tmp_path, value):
    written = record(parameters={"weight": value})
    written.write(tmp_path)
    assert Record.read(tmp_path).digest == written.digest


def test_its_name_is_the_sha256_of_its_file(stored):
    folder, found = stored
    content = (folder / FILE_NAME).read_bytes()
    assert hashlib.sha256(content).hexdigest() == found.digest
    assert (
        content
        == json.dumps(
            json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "prune"},
        {"role": "student"},
        {"key": "2" * 64},
        {"data": DataRef(raw="x.dir", prepared="p.dir", manifest=SHA, content=SHA)},
        {"code": Code(digest=SHA, commit=None, clean=True)},
        {"parameters": {"steps": 11, "learning_rate": 2e-3}},
        {"environment": {"threads": 2, "packages": {"torch": "2.13.0"}}},
        {"parents": ()},
        {"content": "3" * 64},
        {"metrics": {"accuracy": 0.5000001}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_counts(change):
    assert record(**change).digest != record().digest


def test_an_untouched_folder_checks(stored):
    folder, found = stored
    found.check(folder)
    Record.read(folder).check(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "deep/network.json"])
def test_a_changed_file_is_named_with_both_digests(stored, name):
    folder, found = stored
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=name) as caught:
        found.check(folder)
    for expected in (hashlib.sha256(content), hashlib.sha256(path.read_bytes())):
        assert expected.hexdigest() in str(caught.value)


def test_a_longer_and_a_missing_file_are_named(stored):
    folder, found = stored
    (folder / "weights.safetensors").write_bytes(b"weights and more")
    with pytest.raises(ArtifactError, match="weights"):
        found.check(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is missing"):
        found.check(folder)


def test_a_missing_record_says_that_the_model_was_never_finished(tmp_path):
    with pytest.raises(ArtifactError, match="never finished"):
        Record.read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain | {"format": "stillmark-record/2"},
        lambda plain: plain | {"extra": 1},
        lambda plain: {k: v for k, v in plain.items() if k != "files"},
        lambda plain: plain | {"stage": 3},
        lambda plain: [plain],
    ],
    ids=["format", "extra", "missing", "type", "list"],
)
def test_what_is_not_a_record_is_refused(stored, damage):
    folder, _ = stored
    path = folder / FILE_NAME
    path.write_text(json.dumps(damage(json.loads(path.read_bytes()))))
    with pytest.raises(ArtifactError, match="not a readable record"):
        Record.read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_bytes_that_are_no_json_are_refused(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match="not a readable record"):
        Record.read(tmp_path)


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        record().stage = "x"


def test_a_record_holds_no_time_of_day():
    assert record().model_dump_json() == record().model_dump_json()
    assert not {name for name in Record.model_fields if "time" in name or "date" in name}
