import hashlib
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tasks.errors import DataError, SetupError
from tasks.versioning import Versions
from tests.dvc_store import keep_all

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
    found = versions.cache.listing(raw)
    files = {path for path in (versions.root / "data").rglob("*") if path.is_file()}
    assert found == {
        path.relative_to(versions.root / "data").as_posix(): md5_of(path.read_bytes())
        for path in files
    }
    assert all(copy.is_whole and copy.place == "cache" for copy in versions.cache.copies(raw))


def test_an_old_version_comes_from_a_remote_folder(pushed, tmp_path):
    versions, directory = pushed
    assert versions.cache.listing(directory) == {
        name: md5_of(content) for name, content in CONTENTS.items()
    }
    versions.cache.restore(directory, tmp_path / "back")
    for name, content in CONTENTS.items():
        assert (tmp_path / "back" / name).read_bytes() == content
    shutil.rmtree(versions.root / ".dvc" / "remote")
    assert versions.cache.stored(directory).is_relative_to(versions.cache.places.cache)
    versions.cache.restore(directory, tmp_path / "again")


def test_every_copy_is_hashed(pushed):
    versions, directory = pushed
    versions.cache.restore(directory, versions.root / "data")
    assert all(copy.is_whole for copy in versions.cache.copies(directory))
    assert len(versions.cache.copies(directory)) == 2 * (len(CONTENTS) + 1)
    md5 = md5_of(CONTENTS["cat/a.png"])
    remote = versions.root / ".dvc" / "remote"
    object_of(remote, md5).write_bytes(b"A picture")
    cached = object_of(versions.cache.places.cache, md5_of(CONTENTS["rows.csv"]))
    cached.unlink()
    found = [copy for copy in versions.cache.copies(directory) if not copy.is_whole]
    assert [(copy.name, copy.place, copy.path) for copy in found] == [
        ("cat/a.png", "there", object_of(remote, md5)),
        ("rows.csv", "cache", cached),
    ]
    assert found[0].found == md5_of(b"A picture")
    assert (found[0].expected, found[0].size_bytes) == (md5, 9)
    assert (found[1].found, found[1].size_bytes) == (None, None)


def test_a_damaged_listing_is_never_followed(pushed):
    versions, directory = pushed
    path = versions.cache.stored(directory)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"cat", b"dog"))
    with pytest.raises(DataError, match=r"has md5 \w{32}, expected \w{32}; remove it"):
        versions.cache.listing(directory)
    names = {copy.name for copy in versions.cache.copies(directory)}
    assert names == {"", *CONTENTS}


def test_a_damaged_file_is_not_fetched(pushed, tmp_path):
    versions, directory = pushed
    path = object_of(versions.root / ".dvc" / "remote", md5_of(b"another"))
    path.write_bytes(b"aNother")
    with pytest.raises(DataError, match="the remote's copy is damaged"):
        versions.cache.restore(directory, tmp_path / "back")
    assert not object_of(versions.cache.places.cache, md5_of(b"another")).exists()


def test_what_nobody_has_is_named_with_its_cure(pushed):
    versions, directory = pushed
    with pytest.raises(DataError, match=r"neither .* has 0{32}.*`dvc push`"):
        versions.cache.stored("0" * 32)
    with pytest.raises(DataError, match=r"'raw\.dir' is no digest of DVC's"):
        versions.cache.listing("raw.dir")
    shutil.rmtree(versions.root / ".dvc" / "remote")
    with pytest.raises(SetupError, match=r"remote 'there' is not there: .*remote is no folder"):
        versions.cache.listing(directory)
    (versions.root / ".dvc" / "config").write_text("")
    with pytest.raises(DataError, match="there is no default remote"):
        Versions(versions.root, versions.home).cache.stored("0" * 32)


def test_a_listing_that_leaves_its_folder_is_refused(pushed, tmp_path):
    versions, _ = pushed
    directory = keep_all(versions.cache.places.cache, {"../outside": b"x"})
    with pytest.raises(DataError, match="outside the data version"):
        versions.cache.restore(directory, tmp_path / "back")
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
        assert all(copy.is_whole for copy in versions.cache.copies(directory))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    shutil.rmtree(versions.cache.places.cache)
    with pytest.raises(SetupError, match=r"remote 'there' does not answer: .*connect") as caught:
        versions.cache.listing(directory)
    assert len(str(caught.value).splitlines()) == 1
