"""Facts about tables and texts; see tests/tasks/test_watch.py for images and a real champion."""

from datetime import UTC, datetime

import numpy as np
import pandas
import pytest

from tasks.incoming import Known
from tasks.lineage.digests import digest_of_value
from tasks.modalities import MODALITIES
from tasks.prepare import prepare
from tasks.refs import ModelRef, VersionRef
from tasks.settings import Settings
from tasks.signals import Champion, Facts, Watched
from tasks.triggers.drift import Drift
from tasks.triggers.performance import Performance

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
REF = ModelRef(stage="s", role="edge", key="k", run_id="r", model_id="m", record="r", content="c")
WEATHER = ["rain", "snow", "wind", "cloud", "sun", "storm", "fog"]
MUSIC = ["violin", "drum", "flute", "choir", "opera", "tenor"]


class AlwaysFirst:
    """Names the first class, whatever it is asked."""

    classes = ("x", "y")

    def probabilities(self, rows):
        return np.tile(np.array([0.8, 0.2], np.float32), (len(rows), 1))

    def predict(self, model_input, params=None):
        return pandas.DataFrame({"label": ["x"] * len(model_input)})


@pytest.fixture
def place(tmp_path, monkeypatch, params):
    """Makes a project of a modality; gives what finds facts about it."""
    monkeypatch.setenv("STILLMARK_PROJECT", str(tmp_path))
    (tmp_path / "incoming").mkdir()

    def make(modality, header, lines):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "rows.csv").write_text("\n".join([header, *lines]) + "\n")
        section = params(modality={"name": modality}, unreadable="skip")
        prepare(tmp_path, section)
        files = {path.name: path for path in (tmp_path / "prepared").iterdir()}
        known = Known.open(files)
        watched = Watched("p", "incoming", section, dict)

        def facts(header, lines):
            (tmp_path / "incoming" / "rows.csv").write_text("\n".join([header, *lines]) + "\n")
            found = Facts(Settings(), watched, NOW, NOW)
            found.version = VersionRef(name="p.edge", version=1, model=REF)
            found.holder = Champion(
                known,
                known.schema,
                MODALITIES.parse(known.schema["modality"]),
                AlwaysFirst(),
                lambda: (0.95, 0.9),
            )
            return found

        return facts

    return make


def people(random, count, older=0.0):
    ages, cities = random.normal(40 + older, 9, count), random.choice(["Oslo", "Rome"], count)
    return [f"{age:.6f},{city}" for age, city in zip(ages, cities, strict=True)]


def test_columns_of_tables_are_compared(place):
    random = np.random.default_rng(0)
    labelled = [f"{line},{'xy'[at % 2]}" for at, line in enumerate(people(random, 300))]
    facts = place("tables", "age,city,label", labelled)
    same = Drift().look(facts("age,city", people(random, 150)))
    assert same.reason is None
    assert "no drift in 4 tests on 150 arrived and " in same.sentence
    other = Drift().look(facts("age,city", people(random, 150, older=9.0)))
    assert "'age': PSI" in other.sentence
    assert "'city'" not in other.sentence


def test_what_a_table_lacks_is_named(place):
    random = np.random.default_rng(0)
    labelled = [f"{line},{'xy'[at % 2]}" for at, line in enumerate(people(random, 60))]
    found = place("tables", "age,city,label", labelled)("age,town", people(random, 60))
    assert Drift().look(found).sentence == "of the rows drawn, 0 can be read"
    assert "the columns 'city' are missing" in found.unreadable["incoming/rows.csv#0"]


def test_texts_are_compared_by_their_words(place):
    random = np.random.default_rng(0)

    def texts(words, count):
        return [" ".join(random.choice(words, 7)) for _ in range(count)]

    labelled = [f"{text},{'xy'[at % 2]}" for at, text in enumerate(texts(WEATHER, 200))]
    facts = place("text", "text,label", labelled)
    assert Drift().look(facts("text", texts(WEATHER, 90))).reason is None
    assert Drift().look(facts("text", texts(WEATHER, 50) + texts(MUSIC, 40))).reason is not None


def test_late_labels_are_counted_once_and_known_ones_never(place):
    known = [f"{at},Oslo,{'xy'[at % 2]}" for at in range(40)]
    unlabelled = [f"{at},Rome," for at in range(20)]
    facts = place("tables", "age,city,label", known + unlabelled)
    again = [f"{at},Oslo,y" for at in range(40)]
    late = [f"{at},Rome,{'x' if at < 15 else 'y'}" for at in range(20)]
    new = [f"{at},Bern,y" for at in range(10)]
    found = facts("age,city,label", again + late + new + late).late()
    assert (found.right, found.rows, found.low) == (15, 30, 0.9)
    assert len(found.about) == len(digest_of_value([]))
    assert Performance(fewest_labels=30).look(facts("age,city,label", late + new)).reason
