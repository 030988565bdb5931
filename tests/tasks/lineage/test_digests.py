import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.lineage.digests import (
    FileDigest,
    canonical,
    digest_of_file,
    digest_of_files,
    digest_of_value,
    digests_of_folder,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def shuffled(value, order):
    if isinstance(value, dict):
        items = [(key, shuffled(inner, order)) for key, inner in value.items()]
        order.shuffle(items)
        return dict(items)
    return [shuffled(inner, order) for inner in value] if isinstance(value, list) else value


def test_the_example_of_rfc_8785():
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


@given(value=JSON, seed=st.integers(0, 99))
def test_the_order_of_keys_does_not_matter(value, seed):
    again = shuffled(value, random.Random(seed))
    assert canonical(again) == canonical(value)
    assert digest_of_value(again) == hashlib.sha256(canonical(value)).hexdigest()


def test_equal_numbers_have_equal_digests_and_other_types_do_not():
    assert digest_of_value({"a": 1.0}) == digest_of_value({"a": 1})
    digests = {digest_of_value(value) for value in ("1", 1, True, None, [1], {"1": 1}, [], {}, "")}
    assert len(digests) == 9


@given(
    value=st.dictionaries(st.text("ab", min_size=1), st.integers(0, 9), min_size=1), data=st.data()
)
def test_another_value_is_another_digest(value, data):
    name = data.draw(st.sampled_from(sorted(value)))
    assert digest_of_value(value | {name: value[name] + 1}) != digest_of_value(value)
    assert digest_of_value({k: v for k, v in value.items() if k != name}) != digest_of_value(value)


@given(content=st.binary(max_size=300))
def test_a_files_digest_is_its_sha256_and_size(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "file"
    path.write_bytes(content)
    expected = FileDigest(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    assert digest_of_file(path) == expected


@given(content=st.binary(min_size=1, max_size=300), data=st.data())
def test_changing_any_byte_changes_the_digest(tmp_path_factory, content, data):
    at = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "file"
    path.write_bytes(content)
    before = digest_of_file(path)
    path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    assert digest_of_file(path).sha256 != before.sha256
    assert digest_of_file(path).size_bytes == before.size_bytes


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a/c", "a.b", "a/d/e"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "folder"


def test_a_folder_is_its_files_by_posix_path(folder):
    found = digests_of_folder(folder)
    assert set(found) == {"b", "a/c", "a.b", "a/d/e"}
    assert all(found[name] == digest_of_file(folder / name) for name in found)


def test_a_set_of_files_is_their_names_and_contents(folder):
    before = digest_of_files(digests_of_folder(folder))
    (folder / "empty").mkdir()
    assert digest_of_files(digests_of_folder(folder)) == before
    (folder / "b").rename(folder / "b2")
    renamed = digest_of_files(digests_of_folder(folder))
    (folder / "b2").rename(folder / "b")
    (folder / "b").write_text("B")
    changed = digest_of_files(digests_of_folder(folder))
    (folder / "b").unlink()
    gone = digest_of_files(digests_of_folder(folder))
    assert len({before, renamed, changed, gone}) == 4


def test_a_set_of_files_does_not_depend_on_their_order(folder):
    files = digests_of_folder(folder)
    assert digest_of_files(dict(reversed(files.items()))) == digest_of_files(files)


def test_swapped_contents_are_another_set():
    one, two = (FileDigest(sha256=letter * 64, size_bytes=1) for letter in "ab")
    assert digest_of_files({"x": one, "y": two}) != digest_of_files({"x": two, "y": one})
