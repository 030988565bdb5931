import json
import shutil

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.runtimes import text
from tasks.runtimes.text import MASK, PAD, UNKNOWN, TextClassifier, cleaned, tokenize

CLASSES = ["ask", "buy", "call"]
WORDS = ["[PAD]", "[UNK]", "[MASK]", "where", "is", "my", "café", "bill", "now"]
LENGTH = 4
SCORES = np.random.default_rng(0).normal(0, 1, (len(WORDS), len(CLASSES))).astype(np.float32)
TEXTS = ["where is my café", "my bill", "call now", "bill bill bill bill bill now"]
NUMBERS = [[3, 4, 5, 6], [5, 7, PAD, PAD], [UNKNOWN, 8, PAD, PAD], [7, 7, 7, 7]]


def words():
    """A tokenizer of whole words, so that the numbers can be read off."""
    numbers = {word: at for at, word in enumerate(WORDS)}
    model = models.WordLevel(numbers, unk_token=WORDS[UNKNOWN])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An ONNX file written by hand: the sum of the words' scores."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["scores", "inputs"], ["each"]),
            helper.make_node("ReduceSum", ["each", "axis"], ["logits"], keepdims=0),
        ],
        "sum",
        [helper.make_tensor_value_info("inputs", TensorProto.INT64, ["n", LENGTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(CLASSES)])],
        [
            numpy_helper.from_array(SCORES, "scores"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    place = tmp_path_factory.mktemp("sum")
    onnx.save(model, place / "model.onnx")
    schema = {"classes": CLASSES, "length": LENGTH, "tokenizer": words().to_str()}
    (place / "schema.json").write_text(json.dumps(schema))
    return place


@pytest.fixture(scope="module")
def classifier(folder):
    return TextClassifier(folder)


def same(found, numbers):
    """Whether a data frame says what numpy says of these rows of tokens."""
    expected = softmax(SCORES.astype(float)[np.asarray(numbers)].sum(1), axis=1)
    assert list(found.columns) == ["label", "probability", "probabilities"]
    np.testing.assert_allclose(np.array(found["probabilities"].tolist()), expected, rtol=1e-4)
    assert found["label"].tolist() == [CLASSES[at] for at in expected.argmax(1)]
    np.testing.assert_allclose(found["probability"], expected.max(1), rtol=1e-4)


# The stated rule


def test_texts_are_cut_and_filled():
    found = tokenize(TEXTS, words(), LENGTH)
    assert found.dtype == np.int64
    assert found.tolist() == NUMBERS
    assert tokenize(TEXTS, words(), 6).tolist() == [
        [3, 4, 5, 6, PAD, PAD],
        [5, 7, PAD, PAD, PAD, PAD],
        [UNKNOWN, 8, PAD, PAD, PAD, PAD],
        [7, 7, 7, 7, 7, 8],
    ]


def test_no_texts_are_no_rows():
    assert tokenize([], words(), LENGTH).shape == (0, LENGTH)


def test_spaces_around_a_text_and_the_way_an_accent_is_written_play_no_part():
    apart = "cafe\N{COMBINING ACUTE ACCENT}"
    assert cleaned(f"\t {apart}\n") == "café"
    found = tokenize([f"\N{NO-BREAK SPACE} {apart} ", "café"], words(), 2)
    assert found[0].tolist() == found[1].tolist() == [6, PAD]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("", "empty"), (" \n\t\N{IDEOGRAPHIC SPACE}", "empty"), ("a\ud800", "half a character")],
)
def test_what_is_no_text_is_refused(bad, reason):
    with pytest.raises(ValueError, match=reason):
        tokenize(["my bill", bad], words(), LENGTH)


@given(st.text())
def test_any_text_is_tokens_or_refused(found):
    try:
        row = tokenize([found], words(), LENGTH)[0]
    except ValueError:
        return
    assert row[0] != PAD
    assert (row != MASK).all()
    assert set(row[np.argmin(row != PAD) :]) <= {PAD} or (row != PAD).all()


# Forms of input


@pytest.mark.parametrize(
    "form",
    [
        lambda texts: texts,
        tuple,
        iter,
        lambda texts: pd.DataFrame({"text": texts, "note": range(len(texts))}),
        lambda texts: pd.Series(texts, index=range(5, 5 + len(texts))),
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: np.array(texts, dtype=object)[:, None],
        lambda texts: {"text": texts},
        lambda texts: {"text": np.array(texts)},
        lambda texts: [np.str_(text) for text in texts],
    ],
    ids=[
        "list",
        "tuple",
        "iterator",
        "frame",
        "series",
        "strings",
        "objects",
        "column",
        "dict",
        "dict of array",
        "numpy strings",
    ],
)
def test_texts_come_in_many_forms(classifier, form):
    same(classifier.predict(form(TEXTS)), NUMBERS)


@pytest.mark.parametrize("form", [str, np.str_, lambda text: {"text": text}, np.array])
def test_one_text(classifier, form):
    same(classifier.predict(form(TEXTS[1])), NUMBERS[1:2])


def test_nothing_in_nothing_out(classifier):
    found = classifier.predict([])
    assert len(found) == 0
    assert list(found.columns) == ["label", "probability", "probabilities"]


def test_more_rows_than_a_batch_keep_their_order(classifier):
    order = np.random.default_rng(0).integers(0, len(TEXTS), text.BATCH_SIZE * 2 + 3)
    same(classifier.predict([TEXTS[at] for at in order]), [NUMBERS[at] for at in order])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_prepared_rows_of_any_whole_number_type(classifier, dtype):
    found = classifier.probabilities(np.array(NUMBERS, dtype))
    expected = softmax(SCORES.astype(float)[np.array(NUMBERS)].sum(1), axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_large_logits_do_not_overflow(monkeypatch, folder):
    classifier = TextClassifier(folder)
    monkeypatch.setattr(classifier, "logits", lambda rows: np.array([[1e4, 0, -1e4]], np.float32))
    assert classifier.probabilities(np.array(NUMBERS[:1])).tolist() == [[1, 0, 0]]


# Refused inputs


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "NoneType, expected a text"),
        (float("nan"), "float, expected a text"),
        (b"my bill", "bytes, expected a text"),
        (["my bill"], "list, expected a text"),
        (7, "int, expected a text"),
        ("", "an empty text"),
        ("  ", "an empty text"),
        ("\udcff", "a text with half a character"),
    ],
)
def test_a_bad_input_is_named_by_its_position(classifier, bad, reason):
    with pytest.raises(ValueError, match=f"^input 2: {reason}"):
        classifier.predict(["my bill", "now", bad, "where"])


def test_the_file_serves_alone(folder, python, tmp_path):
    shutil.copy(text.__file__, tmp_path / "stillmark_text.py")
    program = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from stillmark_text import _load_pyfunc\n"
        "print(_load_pyfunc(sys.argv[2]).predict(['my bill', 'now'])['label'].tolist())\n"
        "assert not {'tasks', 'torch'} & set(sys.modules)\n"
    )
    done = python("-c", program, tmp_path, folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = [SCORES[[5, 7, 0, 0]].sum(0), SCORES[[8, 0, 0, 0]].sum(0)]
    assert done.stdout.strip() == str([CLASSES[found.argmax()] for found in scores])
