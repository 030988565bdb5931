"""What changed in `data/`, and in what it was imported from, by real DVC."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from tasks.errors import DataError
from tasks.versioning import Dvc, Versions, fingerprint


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository whose data/ was imported from a folder beside it."""
    root = tmp_path_factory.mktemp("made") / "project"
    (root.parent / "source" / "cat").mkdir(parents=True)
    (root.parent / "source" / "cat" / "a.txt").write_text("one")
    root.mkdir()
    dvc(root, "init", "--no-scm", "--quiet")
    dvc(root, "import-url", "--quiet", root.parent / "source", "data")
    return root


def dvc(root, *words):
    cache = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / ".stillmark" / "dvc")}
    command = [sys.executable, "-m", "dvc", "--cd", root, *words]
    done = subprocess.run(command, env=os.environ | cache, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def imported(made, tmp_path, monkeypatch):
    """A copy of it; the source's address is relative, and so is a copy of the source."""
    for name in ("project", "source"):
        shutil.copytree(made.parent / name, tmp_path / name, symlinks=True)
    file = tmp_path / "project" / "data.dvc"
    file.write_text(file.read_text().replace(str(made.parent / "source"), "../source"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc"))
    return Versions(tmp_path / "project", tmp_path / "project" / ".stillmark")


@pytest.fixture
def added(imported):
    """The same as if it had been added here."""
    raw = imported.raw()
    (imported.root / "data.dvc").write_text(
        f"outs:\n- md5: {raw}\n  size: 3\n  nfiles: 1\n  hash: md5\n  path: data\n"
    )
    return imported


@pytest.fixture
def calls(monkeypatch):
    """Every command that DVC is given."""
    found, run = [], Dvc.run

    def noted(self, *words):
        found.append(words[0])
        return run(self, *words)

    monkeypatch.setattr(Dvc, "run", noted)
    return found


def test_dvc_is_asked_only_where_names_sizes_or_times_differ(added, calls):
    raw, picture = added.raw(), added.root / "data" / "cat" / "a.txt"
    assert [added.source.seen(), added.source.seen()] == [raw, raw]
    assert calls == ["status"]

    # Touched, but the same.
    content = picture.read_bytes()
    picture.unlink()
    picture.write_bytes(content)
    assert [added.source.seen(), added.source.seen()] == [raw, raw]
    assert calls == ["status"] * 2

    picture.unlink()
    picture.write_text("two")
    changed = added.source.seen()
    assert changed.startswith("changed-")
    assert added.source.seen() == changed
    picture.write_text("three")
    assert added.source.seen() not in {raw, changed}

    dvc(added.root, "add", "data")
    assert added.source.seen() == added.raw() != raw


def test_nothing_is_read_to_see_that_nothing_changed(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(2**36)
    started = time.monotonic()
    first = fingerprint(tmp_path)
    assert time.monotonic() - started < 5
    assert fingerprint(tmp_path) == first
    file.rename(tmp_path / "other")
    assert fingerprint(tmp_path) != first


def test_an_import_is_fetched_again_only_where_its_source_changed(imported, calls):
    raw, source = imported.raw(), imported.root.parent / "source"
    assert imported.source.imported_from == "../source"
    assert imported.source.refresh() is False
    assert calls == ["status"]
    assert imported.raw() == raw
    (source / "cat" / "b.txt").write_text("two")
    assert imported.source.refresh() is True
    assert imported.raw() != raw
    assert (imported.root / "data" / "cat" / "b.txt").read_text() == "two"
    assert imported.source.seen() == imported.raw()
    assert "frozen: true" in (imported.root / "data.dvc").read_text()
    assert imported.source.refresh() is False


def test_where_the_source_is_gone_the_data_stays(imported):
    """DVC's own update would remove it."""
    raw = imported.raw()
    shutil.rmtree(imported.root.parent / "source")
    with pytest.raises(DataError, match=r"/source.*data/ was imported from, is missing; bring it"):
        imported.source.refresh()
    assert (imported.root / "data" / "cat" / "a.txt").read_text() == "one"
    assert (imported.raw(), imported.source.seen()) == (raw, raw)


def test_what_was_changed_here_is_not_overwritten(imported):
    (imported.root.parent / "source" / "cat" / "b.txt").write_text("two")
    (imported.root / "data" / "cat" / "c.txt").write_text("mine")
    with pytest.raises(DataError, match=r"imported from \.\./source and changed here"):
        imported.source.refresh()
    assert (imported.root / "data" / "cat" / "c.txt").read_text() == "mine"


def test_a_source_that_does_not_answer_is_one_line(imported):
    file = imported.root / "data.dvc"
    address = "http://127.0.0.1:9/data.csv"
    file.write_text(file.read_text().replace("../source", address))
    with pytest.raises(DataError) as caught:
        imported.source.refresh()
    assert str(caught.value).startswith(f"{address}, which data/ was imported from, ")
    assert len(str(caught.value).splitlines()) == 1


def test_an_update_that_fails_leaves_the_data_as_it_was(imported, monkeypatch):
    (imported.root.parent / "source" / "cat" / "b.txt").write_text("two")
    run = Dvc.run

    def fails(self, *words):
        if words[0] == "update":
            shutil.rmtree(self.root / "data")
            raise DataError("dvc: the line broke")
        return run(self, *words)

    monkeypatch.setattr(Dvc, "run", fails)
    with pytest.raises(DataError, match="the line broke"):
        imported.source.refresh()
    assert (imported.root / "data" / "cat" / "a.txt").read_text() == "one"


def test_data_that_was_added_has_no_source(added, calls):
    assert added.source.imported_from is None
    assert added.source.refresh() is False
    assert calls == []
