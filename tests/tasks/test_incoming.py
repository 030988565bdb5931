import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tasks import incoming
from tasks.errors import DataError
from tasks.incoming import Known, absorb, resume
from tasks.modalities.images import Images
from tasks.modalities.tables import Tables
from tasks.modalities.text import Text
from tasks.prepare import distinct_rows, prepare
from tasks.rows import Rows


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def contents(folder):
    """How often each content lies below a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found[content] = found.get(content, 0) + 1
    return found


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_rows_are_read_with_and_without_labels(tmp_path, stripes):
    first, second, third = (stripes("h", seed) for seed in range(3))
    write(
        tmp_path / "incoming",
        {"unlabelled/a.png": first, "h/b.png": second, "h/a.png": first, "v/.c.png": third},
    )
    found = incoming.read(tmp_path / "incoming", Images())
    assert {row.row: row.label for row in found} == {sha256(first): "h", sha256(second): "h"}
    assert {row.source for row in found} == {"incoming/h/a.png", "incoming/h/b.png"}


def test_the_digest_is_of_rows_and_labels_wherever_they_lie(tmp_path, stripes):
    def digest(files):
        folder = tmp_path / f"in-{len(list(tmp_path.iterdir()))}"
        write(folder, files)
        return incoming.digest_of(incoming.read(folder, Images()))

    first, second = stripes("h", 0), stripes("v", 1)
    one = digest({"unlabelled/a.png": first, "unlabelled/b.png": second})
    assert one == digest({"unlabelled/x/z.png": first, "unlabelled/a.png": second})
    assert one != digest({"h/a.png": first, "unlabelled/b.png": second})
    assert one != digest({"unlabelled/a.png": first})


def test_tables_whose_labels_come_later_need_no_such_column(tmp_path):
    write(tmp_path / "incoming", {"rows.csv": "age,id\n41,1\n,2\n"})
    found = incoming.read(tmp_path / "incoming", Tables(ignore=("id", "gone")))
    assert {row.content for row in found} == {b'{"age":null}', b'{"age":"41"}'}
    assert [row.label for row in found] == [None, None]


def test_a_missing_folder_and_a_broken_file_are_named_as_what_they_are(tmp_path):
    with pytest.raises(DataError, match="arrivals/ is missing; make it"):
        incoming.read(tmp_path / "arrivals", Text())
    write(tmp_path / "arrivals", {"rows.csv": "text,label\na,b,c\n"})
    with pytest.raises(DataError, match=r"^arrivals/rows\.csv, line 2: not as many fields"):
        incoming.read(tmp_path / "arrivals", Text())


def test_rows_are_encoded_as_the_champions_schema_says(tmp_path, stripes):
    write(tmp_path / "in", {"unlabelled/a.png": stripes("h", 0), "unlabelled/b.png": b"no"})
    schema = {"side": 4, "channels": 3, "shape": [4, 4, 3]}
    waiting = incoming.read(tmp_path / "in", Images())
    good, inputs, unreadable = incoming.encoded(waiting, Images(), schema)
    assert inputs.shape == (1, 4, 4, 3)
    assert inputs.dtype == np.uint8
    assert [row.source for row in good] == ["in/unlabelled/a.png"]
    assert list(unreadable) == ["in/unlabelled/b.png"]
    assert incoming.named(unreadable).startswith("; cannot be read: in/unlabelled/b.png: not a")
    assert incoming.encoded([], Images(), schema)[1].shape == (0, 4, 4, 3)


def test_the_champions_rows_are_those_that_were_prepared(prepared):
    known = Known.open({path.name: path for path in prepared.iterdir()})
    rows = Rows(prepared)
    training = known.drawn(training=True, most=10**6, seed=0)
    assert sorted(known.names[training]) == sorted(rows.train.names)
    assert np.array_equal(known.sample(training).inputs, np.asarray(rows.train.inputs))
    held_out = known.drawn(training=False, most=10**6, seed=0)
    assert set(rows.open_test().names) <= set(known.names[held_out])
    assert len(training) + len(held_out) == len(known.names)
    few = known.drawn(training=True, most=5, seed=1)
    assert len(few) == 5
    assert set(few) < set(training)
    assert known.drawn(training=True, most=5, seed=1).tolist() == few.tolist()


def test_tables_are_compared_by_their_cells(tmp_path, params):
    lines = [f"{at},{'ab'[at % 2]},{'xy'[at % 2]}" for at in range(40)] + [",,x", "7,c,y"]
    write(tmp_path / "data", {"rows.csv": "age,city,label\n" + "\n".join(lines) + "\n"})
    prepare(tmp_path, params(modality={"name": "tables"}))
    known = Known.open({path.name: path for path in (tmp_path / "prepared").iterdir()})
    sample = known.sample(np.arange(len(known.names)))
    ages = sorted(sample.columns["age"].tolist(), key=lambda age: (np.isnan(age), age))
    assert ages[:3] == [0.0, 1.0, 2.0]
    assert np.isnan(ages[-1])
    assert sorted(set(sample.columns["city"].tolist())) == ["", "a", "b", "c"]


def test_texts_are_compared_as_texts(tmp_path, params):
    lines = [f"text number {at},{'xy'[at % 2]}" for at in range(40)]
    write(tmp_path / "data", {"rows.csv": "text,label\n" + "\n".join(lines) + "\n"})
    prepare(tmp_path, params(modality={"name": "text"}))
    known = Known.open({path.name: path for path in (tmp_path / "prepared").iterdir()})
    places = np.array([3, 0])
    assert all(text.startswith("text number ") for text in known.sample(places).texts)
    assert known.raw(places) == known.sample(places).texts


def test_a_damaged_version_is_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match="prepared rows cannot be read"):
        Known.open({})
    write(tmp_path, {"manifest.parquet": "no"})
    with pytest.raises(DataError, match="prepared rows cannot be read"):
        Known.open({"manifest.parquet": tmp_path / "manifest.parquet"})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cat/a.png", "cat/*/a.png"),
        ("cat/deep/a.png", "cat/*/deep/a.png"),
        ("train/cat/a.png", "train/cat/*/a.png"),
        ("test/cat/deep/a.png", "test/cat/*/deep/a.png"),
        ("unlabelled/a.png", "unlabelled/*/a.png"),
        ("rows.csv", "*/rows.csv"),
        ("train/rows.csv", "train/*/rows.csv"),
    ],
)
def test_a_file_keeps_its_class_and_its_split(tmp_path, name, place):
    write(tmp_path / "incoming", {name: "content"})
    assert absorb(tmp_path, tmp_path / "home", "incoming") == 1
    (found,) = (tmp_path / "data").glob(place)
    assert found.read_text() == "content"
    assert contents(tmp_path / "incoming") == {}
    assert (tmp_path / "incoming" / name).parent.is_dir()
    assert not (tmp_path / "home" / incoming.INTENT_FILE).exists()


def test_rows_keep_their_split_and_duplicates_are_merged(tmp_path, stripes, params):
    old = {f"{'hv'[at % 2]}/{at}.png": stripes("hv"[at % 2], at) for at in range(40)}
    write(tmp_path / "data", old)
    before, _ = distinct_rows(Images().read(tmp_path / "data"), params())
    new = {f"unlabelled/{at}.png": stripes("hv"[at % 2], at) for at in range(30, 60)}
    write(tmp_path / "incoming", new)
    alone, _ = distinct_rows(Images().read(tmp_path / "incoming"), params())
    absorb(tmp_path, tmp_path / "home", "incoming")
    after, report = distinct_rows(Images().read(tmp_path / "data"), params())
    splits = {row.digest: row.split for row in after}
    assert {row.digest: row.split for row in before}.items() <= splits.items()
    assert {row.digest: row.split for row in alone}.items() <= splits.items()
    assert (len(after), len(report["duplicates"])) == (60, 10)
    assert sum(row.label is None for row in after) == 20


def test_the_same_name_with_other_content_is_another_file(tmp_path):
    for content in ("one", "two"):
        write(tmp_path / "incoming", {"rows.csv": content})
        absorb(tmp_path, tmp_path / "home", "incoming")
    assert sorted(contents(tmp_path / "data")) == [b"one", b"two"]


def test_the_same_content_again_changes_nothing(tmp_path):
    for _ in range(2):
        write(tmp_path / "incoming", {"cat/a.txt": "one", "rows.csv": "two"})
        absorb(tmp_path, tmp_path / "home", "incoming")
    assert contents(tmp_path / "data") == {b"one": 1, b"two": 1}
    assert contents(tmp_path / "incoming") == {}


def test_nothing_that_waits_is_nothing_to_do(tmp_path):
    assert absorb(tmp_path, tmp_path / "home", "incoming") == 0
    write(tmp_path / "incoming", {".part.csv": "being written"})
    assert absorb(tmp_path, tmp_path / "home", "incoming") == 0
    assert (tmp_path / "incoming" / ".part.csv").exists()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tasks import incoming

    at, steps = int(sys.argv[1]), 0

    def counted(function):
        def step(*given):
            global steps
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            return function(*given)
        return step

    for name in ("_rename", "_write"):
        setattr(incoming, name, counted(getattr(incoming, name)))
    incoming.absorb(Path.cwd(), Path.cwd() / "home", "incoming")
"""


@pytest.mark.parametrize("at", range(5))
def test_killed_anywhere_nothing_is_lost_or_doubled(tmp_path, at):
    """By SIGKILL before the note and before each of three moves."""
    files = {"cat/a.txt": "one", "unlabelled/b.txt": "two", "rows.csv": "three"}
    write(tmp_path / "incoming", files)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(at)]
    environment = os.environ | {"PYTHONPATH": str(Path(incoming.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == (-signal.SIGKILL if at < 4 else 0)
    everywhere = contents(tmp_path / "data") | contents(tmp_path / "incoming")
    assert everywhere == {b"one": 1, b"two": 1, b"three": 1}

    # Meanwhile another file comes under a name that was moved.
    write(tmp_path / "incoming", {"cat/a.txt": "four"})
    resume(tmp_path, tmp_path / "home")
    if at:
        assert set(contents(tmp_path / "data")) >= {b"two", b"three"}
        assert not (tmp_path / "home" / incoming.INTENT_FILE).exists()
    absorb(tmp_path, tmp_path / "home", "incoming")
    found = contents(tmp_path / "data")
    assert found.pop(b"four") == 1
    # What waited under that name and was not moved yet was replaced by whoever wrote there.
    assert set(found) | {b"one"} == {b"one", b"two", b"three"}
    assert set(found.values()) == {1}
    assert contents(tmp_path / "incoming") == {}


def test_a_file_on_another_disk_is_whole_or_not_there(tmp_path, monkeypatch):
    """Renaming fails there; a copy that stopped half way is no row."""
    write(tmp_path / "incoming", {"rows.csv": "one"})
    rename = Path.replace

    def across(self, target):
        if "incoming" in self.parts:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    def full(number):
        raise OSError(28, "No space left")

    monkeypatch.setattr(Path, "replace", across)
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        patch.setattr(incoming, "_write", lambda path, text: write(path.parent, {path.name: text}))
        with pytest.raises(DataError, match=r"No space left.*the next retraining goes on"):
            absorb(tmp_path, tmp_path / "home", "incoming")
    assert contents(tmp_path / "incoming") == {b"one": 1}
    assert list(Tables().read(tmp_path / "data")) == []
    assert resume(tmp_path, tmp_path / "home") == 1
    assert contents(tmp_path / "data") == {b"one": 1}
    assert contents(tmp_path / "incoming") == {}


def test_whether_rows_woke_a_retraining_is_seen_from_what_it_is_about():
    assert incoming.woken_by_rows("arrived:abc")
    assert not incoming.woken_by_rows("")
    assert not incoming.woken_by_rows("1" * 32 + ".dir")
