import hashlib
import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tasks.errors import DataError
from tasks.modalities.text import Text
from tasks.prepare import prepare
from tasks.rows import Rows
from tasks.runtimes import text as runtime
from tasks.runtimes.text import MASK, PAD, UNKNOWN

TEXT = "where is my card please send the new one to our house now and call me back today"
WORDS = np.array(TEXT.split())


def sentences(count, seed=0, longest=9):
    source = np.random.default_rng(seed)
    return [" ".join(source.choice(WORDS, source.integers(2, longest + 1))) for _ in range(count)]


def contents(texts):
    return (text.encode() for text in texts)


def read(folder, modality=None):
    found = (modality or Text()).read(folder)
    return [(row.source, row.content.decode(), row.label, row.split) for row in found]


@pytest.fixture(scope="module")
def schema():
    return Text(length=8, vocabulary=100).survey(contents(sentences(200)))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


# Reading


def test_paths_of_files_state_labels_and_splits(tmp_path):
    for name in (
        "b/2.txt",
        "a/deep/1.TXT",
        "unlabelled/0.txt",
        "test/a/3.txt",
        "train/unlabelled/4.txt",
        ".hidden/5.txt",
        "a/.6.txt",
        "a/notes.md",
    ):
        write(tmp_path / name, f" {name} \n")
    assert read(tmp_path) == [
        ("a/deep/1.TXT", "a/deep/1.TXT", "a", None),
        ("b/2.txt", "b/2.txt", "b", None),
        ("test/a/3.txt", "test/a/3.txt", "a", "test"),
        ("train/unlabelled/4.txt", "train/unlabelled/4.txt", None, "train"),
        ("unlabelled/0.txt", "unlabelled/0.txt", None, None),
    ]


@pytest.mark.parametrize("name", ["1.txt", "train/1.txt"])
def test_a_file_outside_class_folders_is_named(tmp_path, name):
    write(tmp_path / name, "hello")
    with pytest.raises(DataError, match=rf"text '{name}' lies in no class folder; expected data/"):
        read(tmp_path)


def test_csv_and_parquet_state_them_in_columns(tmp_path):
    write(tmp_path / "a.csv", "id,text,label,split\n1,hello,x,train\n2, there ,,\n")
    table = pa.table({"text": ["so", "on"], "label": [4, None], "split": [None, "test"]})
    pq.write_table(table, tmp_path / "b.parquet")
    assert read(tmp_path) == [
        ("a.csv#0", "hello", "x", "train"),
        ("a.csv#1", "there", None, None),
        ("b.parquet#0", "so", "4", None),
        ("b.parquet#1", "on", None, "test"),
    ]


def test_a_file_of_texts_alone_is_enough(tmp_path):
    write(tmp_path / "a.csv", "text\nhello\n")
    assert read(tmp_path) == [("a.csv#0", "hello", None, None)]


def test_a_table_without_texts_says_what_it_holds(tmp_path):
    write(tmp_path / "a.csv", "sentence,label\nhello,x\n")
    with pytest.raises(DataError, match=r"data/a\.csv has the columns \['label', 'sentence'\]"):
        read(tmp_path)


def test_a_row_that_holds_no_text_is_named(tmp_path):
    pq.write_table(pa.table({"text": [7]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"data/a\.parquet#0: 'text' holds int, expected text"):
        read(tmp_path)


def test_a_row_is_named_by_what_it_says(tmp_path):
    """Accents as one character or two, spaces, a byte order mark: the same row."""
    apart = unicodedata.normalize("NFD", "Crème brûlée")
    write(tmp_path / "a" / "1.txt", b"\xef\xbb\xbf" + "Crème brûlée\r\n".encode())
    write(tmp_path / "b.csv", f"text\n {apart}\n")
    digests = {hashlib.sha256(row.content).hexdigest() for row in Text().read(tmp_path)}
    assert digests == {hashlib.sha256("Crème brûlée".encode()).hexdigest()}


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\xff\xfe", b"caf\xe9"])
def test_what_cannot_be_read_is_passed_over_by_a_survey_and_refused_by_encode(
    tmp_path, schema, content
):
    write(tmp_path / "a" / "1.txt", content)
    (row,) = Text().read(tmp_path)
    assert Text(length=8).survey(iter([row.content, b"hello hello"]))["shape"] == [8]
    with pytest.raises(ValueError, match=r"an empty text|not text in UTF-8"):
        Text().encode(row.content, schema)


# The survey


def test_a_schema_states_all_that_rows_and_networks_need(schema):
    tokenizer = Tokenizer.from_str(schema["tokenizer"])
    assert schema["length"] == 8
    assert schema["shape"] == [8]
    assert schema["dtype"] == "int32"
    assert schema["input_shape"] == [8, tokenizer.get_vocab_size()]
    assert 50 < tokenizer.get_vocab_size() <= 100
    special = [tokenizer.id_to_token(number) for number in (PAD, UNKNOWN, MASK)]
    assert special == ["[PAD]", "[UNK]", "[MASK]"]
    json.dumps(schema)


@pytest.mark.parametrize("longest", [3, 9, 60])
def test_auto_covers_most_training_rows_in_steps_of_four(longest):
    texts = sentences(300, longest=longest)
    found = Text().survey(contents(texts))
    tokenizer = Tokenizer.from_str(found["tokenizer"])
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    covered = np.mean([length <= found["length"] for length in lengths])
    shorter = np.mean([length <= found["length"] - 4 for length in lengths])
    assert found["length"] % 4 == 0
    assert shorter < 0.95 <= covered


def test_auto_stays_within_its_limits():
    assert Text().survey(contents(["a"] * 5))["length"] == 4
    assert Text().survey(contents(sentences(5, longest=2000)))["length"] == 128
    assert Text().survey(iter([]))["length"] == 128


def test_frequent_words_become_one_token(schema):
    tokenizer = runtime.tokenizer_of(schema["tokenizer"])
    assert len(tokenizer.encode("please send the card").ids) == 4
    assert len(tokenizer.encode("asleep").ids) > 1


@pytest.mark.parametrize("vocabulary", [64, 90, 400])
def test_the_vocabulary_is_never_exceeded(vocabulary):
    texts = [*sentences(50), "".join(chr(0x4E00 + at) for at in range(300))]
    shape = Text(vocabulary=vocabulary).survey(contents(texts))["input_shape"]
    assert shape[1] <= vocabulary


def test_rare_characters_are_left_out_of_a_small_vocabulary():
    rare = "".join(chr(0x4E00 + at) for at in range(300))
    found = Text(length=8, vocabulary=64).survey(contents([*sentences(50), rare]))
    encoded = Text().encode(f"my {rare[150]}".encode(), found)
    assert encoded[-1] == PAD
    assert UNKNOWN in encoded
    assert UNKNOWN not in Text().encode(b"please send my card", found)


def test_capitals_are_read_as_small_letters_unless_told_otherwise():
    texts = [*sentences(50), *(text.upper() for text in sentences(50))]
    for lowercase in (True, False):
        modality = Text(length=16, lowercase=lowercase)
        found = modality.survey(contents(texts))
        small, large = (modality.encode(row, found) for row in (b"my card", b"MY CARD"))
        assert (small.tolist() == large.tolist()) is lowercase


SURVEY = """
import hashlib, json, sys
from tasks.modalities.text import Text
texts = json.loads(open(sys.argv[1]).read())
found = Text(vocabulary=90).survey(text.encode() for text in texts)
assert "torch" not in sys.modules
print(hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest())
"""


def test_a_survey_follows_from_the_rows_alone(python, tmp_path):
    """Also where pieces and characters are equally common, and in whatever order rows come."""
    source = np.random.default_rng(1)
    texts = ["".join(source.permutation(list("abcdefghij"))[:6]) for _ in range(60)]
    texts += [chr(0x4E00 + at) for at in range(200)]
    expected = Text(vocabulary=90).survey(contents(texts))
    digest = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
    for turn in range(2):
        source.shuffle(texts)
        assert Text(vocabulary=90).survey(contents(texts)) == expected
        (tmp_path / "texts.json").write_text(json.dumps(texts))
        done = python("-c", SURVEY, tmp_path / "texts.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == digest, turn


# Encoding


def test_training_and_serving_see_the_same_numbers(schema):
    texts = [
        *sentences(20, seed=1),
        "  WHERE is my\N{NO-BREAK SPACE}cafe\N{COMBINING ACUTE ACCENT}",
    ]
    rows = np.stack([Text().encode(text.encode(), schema) for text in texts])
    assert rows.dtype == np.int32
    served = runtime.tokenize(texts, runtime.tokenizer_of(schema["tokenizer"]), 8)
    trained = Text().to_network(torch.from_numpy(rows))
    assert trained.dtype == torch.int64
    assert np.array_equal(trained.numpy(), served)


@pytest.mark.parametrize("text", ["[PAD]", "[MASK] my [UNK]", "[pad] [mask]", "▁", "▁my"])
def test_texts_named_like_special_tokens_are_ordinary_texts(text):
    found = Text(length=16).survey(contents([*sentences(50), "[UNK] [mask] [pad] [PAD]"] * 2))
    encoded = Text().encode(text.encode(), found).tolist()
    used = encoded[: encoded.index(PAD)]
    assert used
    assert not {PAD, UNKNOWN, MASK} & set(used)
    assert set(encoded[len(used) :]) == {PAD}


@given(text=st.text())
def test_any_text_becomes_a_row_or_a_value_error(schema, text):
    try:
        row = Text().encode(text.encode("utf-8", "surrogatepass"), schema)
    except ValueError:
        return
    used = (row != PAD).sum()
    assert used > 0
    assert (row[:used] != PAD).all()
    assert MASK not in row
    assert row.max() < schema["input_shape"][1]


def test_its_runtime_is_the_file_that_serves():
    assert Text().runtime.samefile(runtime.__file__)
    assert "tokenizers" in Text.requirements


# With the data stage


def test_texts_are_prepared_with_their_own_bytes(tmp_path, params):
    texts = list(dict.fromkeys(sentences(120)))
    lines = "".join(f"{text},{'xy'[at % 2] if at % 3 else ''}\n" for at, text in enumerate(texts))
    write(tmp_path / "data" / "rows.csv", f"text,label\n{lines}")
    budget = {"labels_per_class": 4, "validation_labels_per_class": 0}
    prepare(tmp_path, params(modality={"name": "text"}, **budget))
    rows = Rows(tmp_path / "prepared")
    assert rows.classes == ["x", "y"]
    assert len(rows.train.labelled) == 8
    assert rows.encoding.input_shape == tuple(rows.schema["input_shape"])
    found = [content.decode() for content in rows.train.contents]
    assert set(found) < set(texts)
    tokenizer = runtime.tokenizer_of(rows.schema["tokenizer"])
    expected = runtime.tokenize(found, tokenizer, rows.schema["length"])
    assert np.array_equal(rows.train.inputs, expected)


def test_unreadable_texts_are_named_or_left_out(tmp_path, params):
    for at, text in enumerate(sentences(40)):
        write(tmp_path / "data" / "ab"[at % 2] / f"{at}.txt", f"{text} {at}")
    write(tmp_path / "data" / "a" / "empty.txt", "  \n")
    write(tmp_path / "data" / "a" / "latin.txt", b"caf\xe9")
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, params(modality={"name": "text"}))
    assert "data/a/empty.txt: an empty text" in str(caught.value)
    assert "data/a/latin.txt: not text in UTF-8" in str(caught.value)
    report = prepare(tmp_path, params(modality={"name": "text"}, unreadable="skip"))
    assert report["unreadable"] == ["a/empty.txt", "a/latin.txt"]
    assert len(Rows(tmp_path / "prepared").train.names) > 10
