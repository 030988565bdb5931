"""False alarms on data that did not drift, and alarms on data that did."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.datasets import load_digits

from tasks.errors import ParamsError
from tasks.triggers import TRIGGERS
from tasks.triggers.drift import Drift

WEATHER = ["rain", "snow", "wind", "cloud", "sun", "storm", "fog", "hail", "frost", "heat"]
MUSIC = ["violin", "drum", "flute", "choir", "opera", "tenor", "piano", "harp", "lute", "organ"]


@pytest.fixture(scope="module")
def digits():
    return load_digits().images.astype(np.uint8)[..., None], load_digits().target


def said(rows):
    """Class probabilities by a rule that knows nothing of training."""
    weights = np.random.default_rng(9).normal(size=(np.prod(rows.shape[1:]), 3)) / 60
    powers = np.exp(rows.reshape(len(rows), -1).astype(np.float64) @ weights)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def table(random, count, *, older=0.0, gaps=0.1, cities=(5, 3, 2)):
    age = random.normal(40 + older, 10, count)
    age[random.random(count) < gaps] = np.nan
    shares = np.array(cities) / sum(cities)
    city = random.choice(["Rome", "Oslo", ""], count, p=shares)
    return {"age": age, "city": city, "income": random.lognormal(8, 1, count)}


def texts(random, words, count):
    return [" ".join(random.choice(words, 8)) for _ in range(count)]


@pytest.fixture
def look(told, arrived, compare):
    def run(drift, *samples, **answers):
        count = (
            len(next(iter(samples[1].values())))
            if isinstance(samples[1], dict)
            else len(samples[1])
        )
        signals = told(champion=1, arrived=arrived(count), compared=compare(*samples, **answers))
        return drift.look(signals)

    return run


def images(random, digits, train, new):
    chosen = random.permutation(len(digits))[: 2 * train + new]
    rows, held_out, arrived = np.split(digits[chosen], [train, 2 * train])
    return (rows, arrived), {"held_out": said(held_out), "answers": said(arrived)}


def many(kind, digits, drift, look, count):
    """Alarms among draws that did not drift."""
    alarms = 0
    for seed in range(count):
        random = np.random.default_rng(seed)
        answers = {}
        if kind == "images":
            samples, answers = images(random, digits[0], 80, 60)
        elif kind == "tables":
            samples = table(random, 150), table(random, 80)
            answers = {
                "held_out": said(random.normal(size=(100, 4))),
                "answers": said(random.normal(size=(80, 4))),
            }
        else:
            samples = texts(random, WEATHER, 60), texts(random, WEATHER, 60)
        alarms += look(drift, *samples, **answers).reason is not None
    return alarms


@pytest.mark.parametrize(
    ("kind", "test", "count"),
    [
        ("images", "mmd", 60),
        ("images", "classifier", 30),
        ("tables", "mmd", 80),
        ("text", "mmd", 40),
    ],
)
def test_data_that_did_not_drift_rarely_raise_an_alarm(digits, look, kind, test, count):
    """No more alarms than a chance of `alpha` each would give but once in a thousand."""
    drift = Drift(test=test, alpha=0.1, stability_index=0.0)
    assert many(kind, digits, drift, look, count) <= binom.ppf(0.999, count, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("test", ["mmd", "classifier"])
@pytest.mark.parametrize("kind", ["images", "tables", "text"])
def test_many_data_that_did_not_drift_rarely_raise_an_alarm(digits, look, kind, test):
    drift = Drift(test=test, alpha=0.05, stability_index=0.0)
    assert many(kind, digits, drift, look, 300) <= binom.ppf(0.999, 300, 0.05)


@pytest.mark.parametrize("test", ["mmd", "classifier"])
@pytest.mark.parametrize("how", ["brighter", "noisy", "upside down", "fewer classes"])
def test_images_that_drifted_do(digits, look, how, test):
    random = np.random.default_rng(0)
    rows, labels = digits
    (training, new), _ = images(random, rows, 300, 200)
    if how == "brighter":
        new = np.minimum(new + 3, 16).astype(np.uint8)
    elif how == "noisy":
        new = (new + random.integers(0, 5, new.shape)).astype(np.uint8)
    elif how == "upside down":
        new = new[:, ::-1]
    else:
        new = rows[np.isin(labels, [0, 1, 2])][:200]
    found = look(Drift(test=test), training, new)
    assert found.reason.trigger == "drift"
    assert found.reason.about == "arrived:rows"
    assert "drift in 1 of 1 tests on 200 arrived and 300 training rows: rows (" in found.sentence


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        ({"older": 8.0}, "'age'"),
        ({"gaps": 0.5}, "empty cells of 'age'"),
        ({"cities": (2, 6, 2)}, "'city'"),
        ({"cities": (5, 3, 9)}, "empty cells of 'city'"),
    ],
)
def test_a_column_that_drifted_is_named_and_no_other(look, change, blamed):
    random = np.random.default_rng(0)
    found = look(Drift(), table(random, 500), table(random, 300, **change))
    assert found.reason.figures["drifted"] == 1
    assert f"tests on 300 arrived and 500 training rows: {blamed}: PSI " in found.sentence
    assert found.reason.figures["stability_index"] > 0.1
    assert found.reason.figures["p_value"] < 0.01


def test_texts_of_another_vocabulary_drifted(look):
    random = np.random.default_rng(0)
    mixed = texts(random, WEATHER, 60) + texts(random, MUSIC, 40)
    found = look(Drift(), texts(random, WEATHER, 120), mixed)
    assert found.reason.figures["incoming_rows"] == 100


def test_another_mix_of_classes_or_less_sureness_drifted_though_the_columns_did_not(look):
    random = np.random.default_rng(0)
    rows = table(random, 200), table(random, 200)
    sure = np.array([[0.9, 0.1]] * 100 + [[0.1, 0.9]] * 100, np.float32)
    sure += random.uniform(-0.05, 0.05, (200, 1)).astype(np.float32) * [1, -1]
    same = look(Drift(), *rows, held_out=sure, answers=sure[::-1])
    assert same.reason is None
    mix = look(Drift(), *rows, held_out=sure, answers=np.concatenate([sure[:100], sure[:100]]))
    assert "drift in 1 of" in mix.sentence
    assert "classes that the champion names" in mix.sentence
    unsure = (sure + 0.8) / 2.6
    assert (
        "how sure the champion is" in look(Drift(), *rows, held_out=sure, answers=unsure).sentence
    )


def test_what_is_significant_and_tiny_is_no_drift(look):
    random = np.random.default_rng(0)
    samples = table(random, 20_000), table(random, 20_000, older=1.0)
    assert look(Drift(), *samples).reason is None
    assert look(Drift(stability_index=0.0), *samples).reason is not None


def test_the_same_rows_and_seed_give_the_same_answer(digits, look):
    samples, answers = images(np.random.default_rng(0), digits[0], 80, 60)
    assert look(Drift(), *samples, **answers) == look(Drift(), *samples, **answers)


def test_few_rows_or_no_champion_are_not_compared(told, arrived):
    few = told(champion=1, arrived=arrived(49))
    assert Drift(fewest_rows=50).look(few).sentence == "49 new rows wait, 50 are compared"
    assert "compared" not in few.asked
    nobody = told(champion=None)
    assert Drift().look(nobody).reason is None
    assert nobody.asked == ["champion"]


def test_as_many_rows_are_drawn_as_params_yaml_says(told, arrived, compare):
    drawn = []

    def compared(most, seed):
        drawn.append((most, seed))
        return compare(np.zeros((60, 4)), np.zeros((30, 4)))

    signals = told(champion=1, arrived=arrived(10**6), compared=compared)
    found = Drift(most_rows=77, seed=5, fewest_rows=50).look(signals)
    assert drawn == [(77, 5)]
    assert found.sentence == "of the rows drawn, 30 can be read"


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 0.0), ("alpha", 0.5), ("test", "ks"), ("most_rows", 10)]
)
def test_what_makes_no_sense_is_refused(name, value):
    with pytest.raises(ParamsError, match=rf"schedule\.triggers\[0\]\.{name}' is"):
        TRIGGERS.parse({"name": "drift", name: value}, "schedule.triggers[0]")
