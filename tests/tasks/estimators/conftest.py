"""Small texts with words of their own for each class, and real digits as flat numbers."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tasks.modalities import Encoding
from tasks.modalities.text import Text
from tasks.rows import HIDDEN, Part

# A class's name is two of its words; most of its texts hold neither.
TOPICS = {
    "play_music": "play music song album band tune radio guitar singer concert",
    "book_flight": "book flight plane airport ticket seat pilot airline gate runway",
    "pay_bill": "pay bill money invoice electricity owed due account cheque debit",
    "cook_dinner": "cook dinner recipe oven pasta sauce onions kitchen boil chef",
    "weather_report": "weather report rain sunny storm cloudy forecast snow wind cold",
    "call_doctor": "call doctor hospital nurse clinic medicine pain fever surgery pills",
}
FILLER = [
    *"aeiou",
    "please",
    "can",
    "you",
    "want",
    "to",
    "the",
    "my",
    "for",
    "now",
    "today",
    "could",
]


def _sentence(topic, random):
    words = [*random.choice(topic.split(), 3, replace=False), *random.choice(FILLER, 4)]
    return " ".join(random.permutation(words))


def few(labels, each, seed=0):
    """The labels with all but `each` of a class hidden."""
    order = np.random.default_rng(seed).permutation(len(labels))
    shown = np.concatenate([order[labels[order] == at][:each] for at in np.unique(labels)])
    hidden = np.full_like(labels, HIDDEN)
    hidden[shown] = labels[shown]
    return hidden


def part_of(inputs, labels, classes, texts=None):
    names = np.asarray([f"{at:064x}" for at in range(len(labels))])
    contents = None
    if texts is not None:
        contents = np.empty(len(texts), dtype=object)
        contents[:] = [text.encode() for text in texts]
    schema = {"shape": list(np.shape(inputs)[1:]), "classes": list(classes)}
    labels = np.asarray(labels, np.int64)
    return Part(names, inputs, labels, Encoding(Text(), schema), contents)


@pytest.fixture(scope="session")
def write():
    """Makes a part of texts and labels (-1: hidden); classes are those of `TOPICS`."""

    def make(texts, labels, classes=tuple(TOPICS)):
        return part_of(np.zeros((len(texts), 1), np.uint8), labels, classes, texts)

    return make


@pytest.fixture(scope="session")
def texts():
    """240 texts, 40 of each class, with their true classes."""
    random = np.random.default_rng(0)
    truth = np.arange(240) % len(TOPICS)
    topics = list(TOPICS.values())
    return [_sentence(topics[at], random) for at in truth], truth.astype(np.int64)


@pytest.fixture(scope="session")
def said(texts, write):
    """The texts as a part, 3 labels of each class shown."""
    return write(texts[0], few(texts[1], 3))


@pytest.fixture(scope="session")
def digits():
    """400 digits as flat numbers, 8 labels of each class shown, with their true classes."""
    found = load_digits()
    inputs, truth = found.data[:400].astype(np.float32), found.target[:400].astype(np.int64)
    return part_of(inputs, few(truth, 8), [str(at) for at in range(10)]), truth


@pytest.fixture(scope="session")
def tabled():
    """Makes a part of flat numbers and labels (-1: hidden)."""

    def make(inputs, labels, classes):
        return part_of(np.asarray(inputs, np.float32), labels, [str(at) for at in range(classes)])

    return make


@pytest.fixture(scope="session")
def right():
    """Accuracy of logits on the rows whose label is hidden."""

    def share(logits, part, truth):
        hidden = part.labels == HIDDEN
        return float((logits.argmax(axis=1) == truth)[hidden].mean())

    return share
