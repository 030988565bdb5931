import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from filelock import FileLock

from tasks import versioning
from tasks.errors import DataError, SetupError
from tasks.lineage.digests import digest_of_file
from tasks.versioning import Versions
from tests.dvc_store import keep_all


@pytest.fixture
def versions(untrained, monkeypatch):
    """Data versions of a fresh project; `dvc` runs its copy of the code."""
    for name, value in untrained.environment.items():
        monkeypatch.setenv(name, value)
    return Versions(untrained.root, untrained.root / ".stillmark")


def written(root):
    """When each prepared file was written."""
    return {path.name: path.stat().st_mtime_ns for path in (root / "prepared").iterdir()}


def test_prepared_once_and_then_left_alone(versions):
    root = versions.root
    with pytest.raises(DataError, match="not been prepared"):
        versions.current()
    assert not versions.is_current()
    first, before = versions.prepare(), written(root)
    assert versions.is_current()
    assert versions.prepare() == first
    assert written(root) == before
    assert first.raw == yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"]
    assert first.prepared.endswith(".dir")
    assert first.manifest == digest_of_file(root / "prepared" / "manifest.parquet").sha256

    # A change of the parameters is a new version.
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["prepare"]["draw"] = 1
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    assert not versions.is_current()
    second = versions.prepare()
    assert second.raw == first.raw
    assert second.prepared != first.prepared
    assert second.content != first.content


def test_a_corrupt_image_is_named_in_one_line(versions):
    picture = versions.root / "data" / "1" / "1-003.png"
    picture.unlink()  # DVC may have linked it to its cache
    picture.write_bytes(b"\x89PNG and then nothing")
    with pytest.raises(DataError) as caught:
        versions.prepare()
    assert str(caught.value).startswith("unreadable: data/1/1-003.png: not a readable image")
    assert len(str(caught.value).splitlines()) == 1
    assert not (versions.root / "prepared").exists()


@pytest.fixture
def bare(tmp_path):
    """A folder that looks like a DVC project, for checks that run nothing."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "data.dvc").touch()
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "a.png").touch()
    return tmp_path


def test_whole_data_pass_the_check(bare):
    Versions(bare, bare).check()


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        (".dvc", SetupError, "is no DVC repository; run `dvc init`"),
        ("data.dvc", DataError, r"data.dvc is missing; .* run `dvc add data`"),
        ("data", DataError, "data/ is missing; run `dvc pull`"),
        ("data/cat/a.png", DataError, "data/ is empty; .* run `dvc pull`"),
    ],
)
def test_what_is_missing_is_named_with_its_cure(bare, missing, error, message):
    place = bare / missing
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(error, match=message):
        Versions(bare, bare).check()


FAKE_DVC = """
import json, sys, time
started = time.time()
time.sleep(0.6)
with open("spans.jsonl", "a") as spans:
    spans.write(json.dumps([started, time.time()]) + "\\n")
"""


def test_two_processes_take_turns(tmp_path):
    """DVC itself fails at once where another DVC is at work."""
    package = tmp_path / "dvc"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE_DVC)
    call = (
        f"import os, pathlib; os.environ['PYTHONPATH'] = {str(tmp_path)!r}\n"
        "from tasks.versioning import Versions\n"
        "here = pathlib.Path.cwd(); Versions(here, here / 'home')._dvc('status')"
    )
    both = [subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    lines = (tmp_path / "spans.jsonl").read_text().splitlines()
    (_, first_end), (second_start, _) = sorted(json.loads(line) for line in lines)
    assert second_start >= first_end


def test_a_lock_that_is_never_let_go_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(versioning, "LOCK_SECONDS", 0.2)
    started = time.monotonic()
    held = pytest.raises(SetupError, match=r"dvc\.lock has been held")
    with FileLock(tmp_path / "dvc.lock"), held:
        Versions(tmp_path, tmp_path)._dvc("status")
    assert time.monotonic() - started < 5


def test_dvcs_own_error_is_one_line_that_says_something(versions):
    (versions.root / "dvc.yaml").unlink()
    with pytest.raises(DataError, match=r"^dvc: .*(prepare|dvc\.yaml)") as caught:
        versions.prepare()
    assert len(str(caught.value).splitlines()) == 1


def test_the_data_is_as_old_as_the_commit_of_its_version(tmp_path):
    def git(*words, date="2025-03-04T05:06:07+02:00"):
        names = {"GIT_AUTHOR_NAME": "ann", "GIT_AUTHOR_EMAIL": "ann@example.org"}
        names |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in names.items()}
        dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        subprocess.run(["git", *words], cwd=tmp_path, env=os.environ | names | dates, check=True)

    versions = Versions(tmp_path, tmp_path / ".stillmark")
    file = tmp_path / "data.dvc"
    file.write_text("first")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    in_2001 = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert versions.changed() == in_2001
    git("init", "--quiet")
    assert versions.changed() == in_2001
    git("add", "data.dvc")
    git("commit", "--quiet", "--message", "data")
    assert versions.changed() == datetime(2025, 3, 4, 3, 6, 7, tzinfo=UTC)
    file.write_text("second")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert versions.changed() == in_2001


CONTENTS = {"cat/a.png": b"a picture", "cat/b.png": b"another", "rows.csv": b"x,y\n1,2\n"}


def md5_of(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def pushed(tmp_path):
    """A repository whose remote, a folder, holds a version; its cache is empty."""
    root = tmp_path / "repository"
    (root / ".dvc").mkdir(parents=True)
    config = "[core]\n    remote = there\n['remote \"there\"']\n    url = remote\n"
    (root / ".dvc" / "config").write_text(config)
    directory = keep_all(root / ".dvc" / "remote", CONTENTS)
    return Versions(root, root / ".stillmark"), directory


def object_of(folder, md5):
    return folder / "files" / "md5" / md5[:2] / md5[2:]


def test_what_dvc_itself_added_is_listed(versions):
    """DVC's own cache against its own word, of a version that nothing names any more."""
    raw = yaml.safe_load((versions.root / "data.dvc").read_text())["outs"][0]["md5"]
    (versions.root / "data.dvc").unlink()
    found = versions.listing(raw)
    files = {path for path in (versions.root / "data").rglob("*") if path.is_file()}
    assert found == {
        path.relative_to(versions.root / "data").as_posix(): md5_of(path.read_bytes())
        for path in files
    }
    assert all(copy.is_whole and copy.place == "cache" for copy in versions.copies(raw))


def test_an_old_version_comes_from_a_remote_folder(pushed, tmp_path):
    versions, directory = pushed
    assert versions.listing(directory) == {
        name: md5_of(content) for name, content in CONTENTS.items()
    }
    versions.restore(directory, tmp_path / "back")
    for name, content in CONTENTS.items():
        assert (tmp_path / "back" / name).read_bytes() == content
    shutil.rmtree(versions.root / ".dvc" / "remote")
    assert versions.stored(directory).is_relative_to(versions.places.cache)
    versions.restore(directory, tmp_path / "again")


def test_every_copy_is_hashed(pushed):
    versions, directory = pushed
    versions.restore(directory, versions.root / "data")
    assert all(copy.is_whole for copy in versions.copies(directory))
    assert len(versions.copies(directory)) == 2 * (len(CONTENTS) + 1)
    md5 = md5_of(CONTENTS["cat/a.png"])
    remote = versions.root / ".dvc" / "remote"
    object_of(remote, md5).write_bytes(b"A picture")
    cached = object_of(versions.places.cache, md5_of(CONTENTS["rows.csv"]))
    cached.unlink()
    found = [copy for copy in versions.copies(directory) if not copy.is_whole]
    assert [(copy.name, copy.place, copy.path) for copy in found] == [
        ("cat/a.png", "there", object_of(remote, md5)),
        ("rows.csv", "cache", cached),
    ]
    assert found[0].found == md5_of(b"A picture")
    assert (found[0].expected, found[0].size_bytes) == (md5, 9)
    assert (found[1].found, found[1].size_bytes) == (None, None)


def test_a_damaged_listing_is_never_followed(pushed):
    versions, directory = pushed
    path = versions.stored(directory)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"cat", b"dog"))
    with pytest.raises(DataError, match=r"has md5 \w{32}, expected \w{32}; remove it"):
        versions.listing(directory)
    names = {copy.name for copy in versions.copies(directory)}
    assert names == {"", *CONTENTS}


def test_a_damaged_file_is_not_fetched(pushed, tmp_path):
    versions, directory = pushed
    path = object_of(versions.root / ".dvc" / "remote", md5_of(b"another"))
    path.write_bytes(b"aNother")
    with pytest.raises(DataError, match="the remote's copy is damaged"):
        versions.restore(directory, tmp_path / "back")
    assert not object_of(versions.places.cache, md5_of(b"another")).exists()


def test_what_nobody_has_is_named_with_its_cure(pushed):
    versions, directory = pushed
    with pytest.raises(DataError, match=r"neither .* has 0{32}.*`dvc push`"):
        versions.stored("0" * 32)
    with pytest.raises(DataError, match=r"'raw\.dir' is no digest of DVC's"):
        versions.listing("raw.dir")
    shutil.rmtree(versions.root / ".dvc" / "remote")
    with pytest.raises(SetupError, match=r"remote 'there' is not there: .*remote is no folder"):
        versions.listing(directory)
    (versions.root / ".dvc" / "config").write_text("")
    with pytest.raises(DataError, match="there is no default remote"):
        Versions(versions.root, versions.home).stored("0" * 32)


def test_a_listing_that_leaves_its_folder_is_refused(pushed, tmp_path):
    versions, _ = pushed
    directory = keep_all(versions.places.cache, {"../outside": b"x"})
    with pytest.raises(DataError, match="outside the data version"):
        versions.restore(directory, tmp_path / "back")
    assert not (tmp_path / "outside").exists()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments):
        pass


def test_a_remote_elsewhere_is_asked_through_dvc(pushed):
    versions, directory = pushed
    handler = partial(_Quiet, directory=str(versions.root / ".dvc" / "remote"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = versions.root / ".dvc" / "config"
    address = f"http://127.0.0.1:{server.server_port}"
    config.write_text(config.read_text().replace("url = remote", f"url = {address}"))
    try:
        assert all(copy.is_whole for copy in versions.copies(directory))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    shutil.rmtree(versions.places.cache)
    with pytest.raises(SetupError, match=r"remote 'there' does not answer: .*connect") as caught:
        versions.listing(directory)
    assert len(str(caught.value).splitlines()) == 1
