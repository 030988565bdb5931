import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

import tests.records
from tasks.errors import ArtifactError
from tasks.lineage.digests import canonical, digest_of_files, digests_of_folder
from tasks.lineage.record import FILE_NAME, READABLE, SCHEMA, Code, Parent, Record, schema
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
RELEASED = Path(tests.records.__file__).parent
VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=3,
)


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
        lambda plain: plain | {"extra": 1},
        lambda plain: {k: v for k, v in plain.items() if k != "files"},
        lambda plain: plain | {"stage": 3},
        lambda plain: plain | {"data": plain["data"] | {"content": None}},
        lambda plain: [plain],
    ],
    ids=["extra", "missing", "type", "deep", "list"],
)
def test_what_is_not_a_record_is_refused(stored, damage):
    folder, _ = stored
    path = folder / FILE_NAME
    path.write_bytes(canonical(damage(json.loads(path.read_bytes()))))
    with pytest.raises(ArtifactError, match=f"{path} is not a readable record") as caught:
        Record.read(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_the_field_that_is_wrong_is_named(stored):
    folder, found = stored
    plain = found.model_dump(mode="json") | {"data": {"raw": 1}}
    (folder / FILE_NAME).write_bytes(canonical(plain))
    with pytest.raises(ArtifactError, match=r"not a readable record: data\.raw: Input should be"):
        Record.read(folder)


@pytest.mark.parametrize("name", ["stillmark-record/2", "", None, 1, ["stillmark-record/1"]])
def test_another_format_is_refused_with_what_was_found_and_what_is_readable(stored, name):
    folder, found = stored
    newer = found.model_dump(mode="json") | {"format": name, "more": {"nobody": "knows"}}
    (folder / FILE_NAME).write_bytes(canonical(newer))
    with pytest.raises(ArtifactError, match=r"reads stillmark-record/1; read a newer") as caught:
        Record.read(folder)
    assert f"its format is {str(name)!r}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_record_must_say_its_format(stored):
    folder, found = stored
    plain = found.model_dump(mode="json")
    del plain["format"]
    (folder / FILE_NAME).write_bytes(canonical(plain))
    with pytest.raises(ArtifactError, match="its format is 'None'"):
        Record.read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 10_000, b'{"metrics":NaN}'])
def test_bytes_that_are_no_json_are_refused(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match="not a readable record: it was cut or changed"):
        Record.read(tmp_path)


def test_a_half_written_record_is_refused_wherever_it_ends(stored):
    content = (stored[0] / FILE_NAME).read_bytes()
    for length in range(len(content)):
        with pytest.raises(ArtifactError, match="not a readable record"):
            Record.parse(content[:length])


def test_a_folder_in_its_place_is_refused(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ArtifactError, match="not a readable record"):
        Record.read(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        lambda content: content + b"\n",
        lambda content: json.dumps(json.loads(content), indent=2).encode(),
        lambda content: (
            json.dumps(json.loads(content), separators=(",", ":")).encode()[:-1]
            + b',"stage":"teach"}'
        ),
        lambda content: content.replace(b'"steps":10', b'"steps":1e1'),
        lambda content: content.replace(b"torch", b"t\\u006frch"),
    ],
    ids=["newline", "indented", "repeated", "number", "escape"],
)
def test_the_same_values_in_other_bytes_are_refused(stored, other):
    """Or one record would have two names."""
    content = (stored[0] / FILE_NAME).read_bytes()
    assert other(content) != content
    with pytest.raises(ArtifactError, match="canonical form"):
        Record.parse(other(content))


@given(value=st.floats(1e16, 1e300) | st.integers(2**53, 2**70))
def test_any_number_in_a_parameter_is_one_record(value):
    written = record(parameters={"weight": value})
    assert Record.parse(canonical(written.model_dump(mode="json"))).digest == written.digest


def test_a_number_that_json_cannot_hold_is_refused():
    content = canonical(record().model_dump(mode="json"))
    with pytest.raises(ArtifactError, match="not a readable record"):
        Record.parse(content.replace(b'"steps":10', b'"steps":1' + b"0" * 400))


def places(value, path=()):
    """Every place in a document: of a member, or of a new one."""
    if isinstance(value, dict):
        yield (*path, "new member")
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from places(inner, (*path, at))
    if path:
        yield path


@given(data=st.data())
def test_the_schema_accepts_what_is_read_and_refuses_what_is_refused(data):
    files = {"model.onnx": {"sha256": SHA, "size_bytes": 7}}
    plain = record().model_dump(mode="json") | {"files": files}
    for _ in range(data.draw(st.integers(0, 2))):
        *parents, last = data.draw(st.sampled_from(list(places(plain))))
        place = plain
        for name in parents:
            place = place[name]
        if data.draw(st.booleans()) or last == "new member":
            place[last] = data.draw(JSON)
        else:
            del place[last]
    content = canonical(plain)
    try:
        Record.parse(content)
    except ArtifactError:
        accepted = False
    else:
        accepted = True
    assert VALIDATOR.is_valid(json.loads(content)) == accepted


@given(
    parameters=PLAIN,
    environment=PLAIN,
    metrics=st.dictionaries(TEXT, FLOATS, max_size=3),
    roles=st.lists(TEXT, max_size=3),
)
def test_the_schema_accepts_what_is_written(
    tmp_path_factory, parameters, environment, metrics, roles
):
    folder = tmp_path_factory.getbasetemp()
    parents = tuple(Parent(role=role, record=SHA, model_id=None) for role in roles)
    record(parameters=parameters, environment=environment, metrics=metrics, parents=parents).write(
        folder
    )
    VALIDATOR.validate(json.loads((folder / FILE_NAME).read_bytes()))


def test_the_shipped_schema_is_that_of_the_class():
    Draft202012Validator.check_schema(schema())
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema()


def released():
    """Record files of released formats with their digests, as `sha256sum -c` reads them."""
    lines = (RELEASED / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return [(name, digest) for digest, _, name in (line.partition("  ") for line in lines)]


@pytest.mark.parametrize(("name", "digest"), released())
def test_a_record_of_a_released_format_stays_readable(name, digest):
    content = (RELEASED / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    found = Record.parse(content)
    assert found.digest == digest
    assert found.stage == Path(name).stem
    assert found.model_dump(mode="json") == json.loads(content)


def test_every_record_is_listed_and_every_readable_format_has_some():
    names = [name for name, _ in released()]
    assert sorted(names) == sorted(
        path.relative_to(RELEASED).as_posix() for path in RELEASED.rglob("*.json")
    )
    assert {Path(name).parent.name for name in names} == {
        name.replace("/", "-") for name in READABLE
    }


def test_the_parents_of_released_records_are_there_too():
    digests = {digest for _, digest in released()}
    for name, _ in released():
        for parent in Record.parse((RELEASED / name).read_bytes()).parents:
            assert parent.record in digests


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        record().stage = "x"


def test_a_record_holds_no_time_of_day():
    assert record().model_dump_json() == record().model_dump_json()
    assert not {name for name in Record.model_fields if "time" in name or "date" in name}
