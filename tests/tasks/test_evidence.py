import json
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import evidence as storage
from tasks.errors import ArtifactError
from tasks.evidence import FILES
from tasks.gates import GATES, Evidence, Side
from tasks.gates.agreement import Agreement
from tasks.gates.budget import Budget
from tasks.gates.calibration import Calibration
from tasks.gates.export import Export
from tasks.gates.freshness import Freshness
from tasks.gates.fusion import Fusion
from tasks.gates.lineage import Lineage
from tasks.gates.membership import Membership
from tasks.gates.quality import Quality
from tasks.gates.size import Size
from tasks.gates.slices import Slices
from tasks.lineage.digests import digests_of_folder

GATES_OF_ALL_KINDS = (
    Agreement(at_least=0.5),
    Agreement(at_least=0.5, against="teacher"),
    Budget(size_kib=10.0, latency_ms=1.0, latency_ratio=1.0),
    Calibration(largest=0.2),
    Export(),
    Freshness(days=30.0),
    Fusion(),
    Lineage(),
    Membership(),
    Quality(),
    Quality(metric="macro_f1", test="non_inferiority", margin=0.1),
    Size(),
    Slices(fewest_rows=2),
)

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)
positive = st.floats(1e-6, 1e6)
finite = st.floats(allow_nan=False, allow_infinity=False)
measured = texts | st.sampled_from(("fused_agreement", "size_ratio", "export_difference"))


def array(values):
    return np.asarray(values, dtype=np.str_)


def lists(values, count):
    return st.lists(values, min_size=count, max_size=count).map(array)


@st.composite
def sides(draw, classes, rows, pool, calls):
    numbers = st.floats(width=32)  # also NaN and infinities: what a broken model gives is kept
    shares = draw(st.lists(numbers, min_size=rows * classes, max_size=rows * classes))
    return Side(
        version=draw(st.integers(1, 10**6)),
        content=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        labels=draw(lists(texts, rows)),
        probabilities=np.asarray(shares, np.float32).reshape(rows, classes),
        pool_labels=draw(lists(texts, pool)),
        size_bytes=draw(st.integers(1, 10**12)),
        latency_ms=np.asarray(draw(st.lists(positive, min_size=calls, max_size=calls)), np.float64),
        lineage=tuple(draw(st.lists(texts, max_size=3))),
        clean=draw(st.booleans()),
        metrics=draw(st.dictionaries(measured, finite, max_size=4)),
    )


@st.composite
def evidences(draw):
    classes = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    rows, pool, calls = draw(st.integers(1, 6)), draw(st.integers(0, 4)), draw(st.integers(0, 3))
    side = sides(len(classes), rows, pool, calls)
    return Evidence(
        rows=draw(lists(texts, rows)),
        labels=draw(lists(st.sampled_from(classes), rows)),
        classes=tuple(classes),
        columns=draw(st.dictionaries(texts, lists(texts, rows), max_size=3)),
        pool=draw(lists(texts, pool)),
        challenger=draw(side),
        champion=draw(st.none() | side),
        control=draw(st.none() | lists(texts, rows)),
        data_age_days=draw(st.floats(-1e4, 1e4)),
        teacher=draw(st.none() | lists(texts, pool)),
    )


def plain(value):
    """Evidence as values that `==` compares; NaN as its bytes."""
    if isinstance(value, np.ndarray):
        return (value.shape, value.tolist() if value.dtype.kind == "U" else value.tobytes())
    if isinstance(value, Evidence | Side):
        return {name: plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return value


@pytest.fixture
def whole():
    random = np.random.default_rng(0)
    classes = ("cat", "dog")

    def side(version):
        shares = random.dirichlet((1, 1), 50).astype(np.float32)
        return Side(
            version=version,
            content=f"{version:064x}",
            labels=array(classes)[shares.argmax(1)],
            probabilities=shares,
            pool_labels=random.choice(classes, 30),
            size_bytes=9000,
            latency_ms=random.uniform(0.5, 1.5, 20),
            lineage=(),
            clean=True,
            metrics={"fused_agreement": 0.995, "size_ratio": 1 / 3, "export_difference": 2e-7},
        )

    return Evidence(
        rows=array([f"{at:064x}" for at in range(50)]),
        labels=random.choice(classes, 50),
        classes=classes,
        columns={"source": random.choice(["phone", "studio"], 50)},
        pool=array([f"{at:064x}" for at in range(50, 80)]),
        challenger=side(2),
        champion=side(1),
        control=random.choice(classes, 50),
        data_age_days=1.25,
        teacher=random.choice(classes, 30),
    )


@given(evidences())
@settings(max_examples=60)
def test_what_is_written_is_read_back(tmp_path_factory, evidence):
    folder = tmp_path_factory.mktemp("evidence")
    digests = storage.write(evidence, folder)
    found = storage.read(folder)
    assert plain(found) == plain(evidence)
    assert storage.write(found, folder) == digests == digests_of_folder(folder)


@given(evidences())
@settings(max_examples=25)
def test_whoever_has_the_files_finds_the_same_verdicts(tmp_path_factory, evidence):
    folder = tmp_path_factory.mktemp("evidence")
    storage.write(evidence, folder)
    found = storage.read(folder)
    for gate in GATES_OF_ALL_KINDS:
        assert gate.judge(found) == gate.judge(evidence)


def test_every_gate_is_among_those_judged_again():
    assert {gate.name for gate in GATES_OF_ALL_KINDS} == set(GATES.methods)


def test_real_figures_are_judged_again_exactly(whole, tmp_path):
    storage.write(whole, tmp_path)
    found = storage.read(tmp_path)
    for gate in (*GATES_OF_ALL_KINDS, Slices(columns=("source",)), Quality(metric="macro_f1")):
        assert gate.judge(found).model_dump_json() == gate.judge(whole).model_dump_json()


def test_equal_evidence_has_equal_bytes_and_other_evidence_others(whole, tmp_path):
    first = storage.write(whole, tmp_path)
    assert tuple(first) == FILES
    reordered = replace(
        whole, columns=dict(reversed([*whole.columns.items(), ("a", whole.labels)]))
    )
    ordered = replace(whole, columns={"a": whole.labels} | whole.columns)
    assert storage.write(reordered, tmp_path) == storage.write(ordered, tmp_path) != first
    for change in (
        {"data_age_days": 1.5},
        {"control": None},
        {"champion": None},
        {"teacher": None},
        {"challenger": replace(whole.challenger, metrics={})},
        {"challenger": replace(whole.challenger, clean=False)},
    ):
        assert storage.write(replace(whole, **change), tmp_path) != first


def test_evidence_of_earlier_versions_is_read_without_what_they_did_not_keep(whole, tmp_path):
    early = replace(whole, teacher=None)
    storage.write(early, tmp_path)

    def unlearn(facts):
        for part in (facts["challenger"], facts["champion"]):
            del part["metrics"]
        del facts["teacher"]

    edited(tmp_path, "facts.json", unlearn)
    found = storage.read(tmp_path)
    assert found.teacher is None
    assert found.challenger.metrics == {}
    for gate in (Quality(), Slices(), Agreement(at_least=0.5), Membership()):
        assert gate.judge(found) == gate.judge(early)
    assert not Fusion().judge(found).passed


def test_a_column_may_have_any_name(whole, tmp_path):
    columns = dict.fromkeys(("row", "label", "challenger", "column.x", ""), whole.labels)
    storage.write(replace(whole, columns=columns), tmp_path)
    assert set(storage.read(tmp_path).columns) == set(columns)


def test_people_can_read_the_table(whole, tmp_path):
    storage.write(whole, tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert list(table) == [
        *("row", "label", "challenger", "champion", "control"),
        *("challenger_probabilities", "champion_probabilities", "column.source"),
    ]
    assert table["label"] == whole.labels.tolist()
    assert table["challenger_probabilities"][3] == whole.challenger.probabilities[3].tolist()


# What is not whole


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_damaged_file_is_refused_in_one_line(whole, tmp_path, name, cut):
    storage.write(whole, tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=rf"{name} is no whole evidence") as caught:
        storage.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(whole, tmp_path, name):
    storage.write(whole, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is missing; take all of facts"):
        storage.read(tmp_path)


def edited(folder, name, change):
    path = folder / name
    if path.suffix == ".json":
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))
    else:
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def other(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, values(table))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("predictions.parquet", lambda t: t.slice(1), "it has 49 rows, facts.json says 50"),
        ("predictions.parquet", lambda t: t.drop(["champion"]), "it has the columns"),
        (
            "predictions.parquet",
            other("label", lambda t: [[None] * 50]),
            "label is no whole string",
        ),
        (
            "predictions.parquet",
            other("label", lambda t: pyarrow.array([None, *t["label"].to_pylist()[1:]])),
            "label is no whole string",
        ),
        (
            "predictions.parquet",
            other(
                "champion_probabilities",
                lambda t: pyarrow.array(
                    [[0.5], [0.5, 0.2, 0.3], *t["champion_probabilities"].to_pylist()[2:]],
                    pyarrow.list_(pyarrow.float32()),
                ),
            ),
            "champion_probabilities has no 2 values in every row",
        ),
        ("predictions.parquet", other("label", lambda t: pyarrow.array(["x"] * 50)), "label 'x'"),
        ("pool.parquet", lambda t: t.slice(0, 0), "it has 0 rows, facts.json says 30"),
        ("facts.json", lambda f: f.update(champion=None), "it has the columns"),
        ("facts.json", lambda f: f.update(schema_version=2), "schema_version"),
        ("facts.json", lambda f: f.pop("challenger"), "challenger: Field required"),
        ("facts.json", lambda f: f["champion"].update(clean=1), "champion.clean"),
        ("facts.json", lambda f: f["champion"]["latency_ms"].pop(), "latency_ms has shape"),
        ("facts.json", lambda f: f.update(surprise=1), "surprise: Extra"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(whole, tmp_path, name, change, reason):
    storage.write(whole, tmp_path)
    edited(tmp_path, name, change)
    with pytest.raises(ArtifactError, match=reason) as caught:
        storage.read(tmp_path)
    assert "\n" not in str(caught.value)
