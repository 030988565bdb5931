import hashlib
import json
import shutil
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import save_file

from tasks.errors import SetupError
from tasks.lineage import origin
from tasks.lineage.digests import canonical, digest_of_file, digest_of_files, digests_of_folder
from tasks.lineage.record import Code
from tasks.params import load
from tasks.refs import DataRef
from tasks.sections import Section
from tasks.settings import Settings
from tasks.signing import sign
from tasks.stage import Run, stage
from tasks.succession import CHAMPION, Succession
from tasks.tracking import Tracking
from tasks.verify import Finding, Report, verify, verify_all
from tasks.versioning import Cache, Places, Versions
from tests.conftest import toy_of
from tests.dvc_store import keep_all

EDGE, TEACHER = "digits.edge", "digits.teacher"
RAW = {"0/a.png": b"zero", "1/b.png": b"one", "rows.csv": b"x,y\n1,2\n" * 40}


class Nothing(Section):
    salt: int = 0


def learn(work, params):
    """A teacher with weights, as networks are stored."""
    weights = {"weight": np.arange(4096, dtype=np.float32) + params.salt}
    save_file(weights, work.folder / "weights.safetensors")
    (work.folder / "model.onnx").write_bytes(b"a graph" * 50)
    return {}


def flip(path):
    """Changes one bit in the middle of a file."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@dataclass(frozen=True)
class Place:
    """A project with two edge versions of one teacher, the second champion; data in cache and
    remote; code in git."""

    root: Path
    run: Run
    tracking: Tracking
    succession: Succession

    @property
    def cache(self):
        return self.root / ".dvc" / "cache"

    @property
    def remote(self):
        return self.root / "remote"

    @property
    def versions(self):
        found = Versions(self.root, self.root / ".stillmark")
        # Asking DVC takes a second.
        found.cache.places = Places(self.cache, "here", str(self.remote))
        return found

    def verify(self, number=2, name=EDGE, **more) -> Report:
        version = self.tracking.version(name, number)
        return verify(self.tracking, self.versions, self.succession, version, **more)

    def folder(self, name=EDGE, number=2):
        return self.tracking.stored_at(self.tracking.version(name, number).model.model_id)

    def file(self, name, of=EDGE, number=2):
        (path,) = self.folder(of, number).rglob(name)
        return path

    def object(self, folder, content, suffix=""):
        name = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return folder / "files" / "md5" / name[:2] / f"{name[2:]}{suffix}"

    def let_go(self):
        """Closes the databases, so that their files can be put back."""
        client = self.tracking.client
        client._tracking_client.store.engine.dispose()
        client._get_registry_client().store.engine.dispose()


def make(root, template, toy):
    """Everything of a `Place`."""
    shutil.copytree(template, root, ignore=shutil.ignore_patterns("data", "data.dvc"))
    (root / "tasks").mkdir()
    (root / "tasks" / "one.py").write_text("print('one')\n")
    who = ["-c", "user.name=Tests", "-c", "user.email=tests@localhost"]
    for words in (["init", "-q"], ["add", "tasks"], [*who, "commit", "-qm", "code"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    told = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(told, cwd=root, check=True, capture_output=True, text=True)
    digest = digest_of_files(digests_of_folder(root / "tasks"))
    code = Code(digest=digest, commit=commit.stdout.strip(), clean=True)
    prepared = root / "prepared"
    contents = {path.name: path.read_bytes() for path in prepared.iterdir()}
    for folder in (root / ".dvc" / "cache", root / "remote"):
        raw, rows = keep_all(folder, RAW), keep_all(folder, contents)
    data = DataRef(
        raw=raw,
        prepared=rows,
        manifest=digest_of_file(prepared / "manifest.parquet").sha256,
        content=digest_of_files(digests_of_folder(prepared)),
    )
    params = load(root)
    run = Run(params.project, params.compute, data)
    tracking = Tracking(f"sqlite:///{root / 'mlflow.db'}", root / ".stillmark")
    succession = Succession.of(Settings())
    place = Place(root, run, tracking, succession)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origin, "code", lambda: code)
        teacher = stage("teacher")(learn)._run(run, Nothing())
        tracking.register(TEACHER, teacher, {})
        for salt in (1, 2):
            edge = toy.make(place, "good", salt, teacher=teacher)
            version = tracking.register(EDGE, edge, {})
            intent = succession.intend(version, "promoted", "as good as any")
            succession.install(intent, version)
    return place


@pytest.fixture(scope="module")
def _made(tmp_path_factory, bench_template, linear):
    root = tmp_path_factory.mktemp("verify") / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLMARK_PROJECT", str(root))
        place = make(root, bench_template, toy_of(linear))
        place.let_go()
        shutil.copytree(root, root.with_name("as it was"), symlinks=True)
        yield place


@pytest.fixture
def place(_made):
    yield _made
    _made.let_go()
    shutil.rmtree(_made.root)
    shutil.copytree(_made.root.with_name("as it was"), _made.root, symlinks=True)


def accused(report):
    """What is wrong, in short."""
    return [(one.subject, one.kind, one.status) for one in report.problems]


def test_untouched_it_passes(place):
    report = place.verify()
    assert accused(report) == []
    assert report.passed
    assert report.edges == {
        f"{EDGE} version 2": "verified",
        f"training of {EDGE} version 2": "declared",
        f"{TEACHER} version 1": "verified",
        f"training of {TEACHER} version 1": "declared",
        f"prepared data {place.run.data.prepared}": "verified",
        f"raw data {place.run.data.raw}": "verified",
        f"ledger of {EDGE}": "verified",
    }
    declared = {one.kind for one in report.findings if one.status == "declared"}
    assert declared == {"environment"}
    kinds = {one.kind for one in report.findings if one.status == "verified"}
    data = {"manifest", "prepared data", "raw data"}
    assert kinds == {"record", "file", "tag", "ledger", "code", *data}


def test_each_file_is_named_with_its_digest_and_size(place):
    """Against hashlib and the file system."""
    found = {one.path: one for one in place.verify().findings if one.kind == "file"}
    for name, number in ((EDGE, 2), (TEACHER, 1)):
        folder = place.folder(name, number)
        files = {path for path in folder.rglob("*") if path.is_file()}
        for path in files - {folder / "record.json", folder / "registered_model_meta"}:
            one = found.pop(str(path))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert (one.expected, one.found) == (digest, digest)
            assert one.size_bytes == path.stat().st_size
    assert found == {}


@pytest.mark.parametrize(
    ("name", "of"),
    [("weights.safetensors", TEACHER), ("model.onnx", EDGE), ("model.onnx", TEACHER)],
)
def test_one_bit_of_a_file(place, name, of):
    number = 2 if of == EDGE else 1
    path = place.file(name, of, number)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path)
    report = place.verify()
    (found,) = report.problems
    assert not report.passed
    assert (found.kind, found.status, found.path) == ("file", "mismatch", str(path))
    assert found.edge == f"{of} version {number}"
    assert found.expected == before
    assert found.found == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.size_bytes == path.stat().st_size


def test_any_byte_of_any_file(place):
    """Every stored file and all data in the cache, one changed byte each: it alone is accused."""
    folders = [place.folder(EDGE, 2), place.folder(TEACHER, 1), place.cache]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    random = np.random.default_rng(0)
    for path in paths:
        if path.name == "registered_model_meta":
            continue
        before = path.read_bytes()
        content = bytearray(before)
        content[random.integers(len(content))] ^= int(random.integers(1, 256))
        path.write_bytes(content)
        problems = place.verify().problems
        assert [(one.path, one.status) for one in problems] == [(str(path), "mismatch")]
        path.write_bytes(before)
    assert place.verify().passed


def test_a_truncated_a_removed_and_an_added_file(place):
    path = place.file("model.onnx")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    (found,) = place.verify().problems
    assert (found.status, found.sentence) == (
        "mismatch",
        f"it has {size - 1} bytes, recorded {size}",
    )
    path.unlink()
    (found,) = place.verify().problems
    assert (found.kind, found.status, found.path) == ("file", "missing", str(path))
    added = path.with_name("more.bin")
    added.write_bytes(b"more")
    assert {one.path: one.status for one in place.verify().problems} == {
        str(path): "missing",
        str(added): "mismatch",
    }


@pytest.mark.parametrize("of", [EDGE, TEACHER])
@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:200])], ids=["bit", "half"]
)
def test_a_record(place, of, damage):
    number = 2 if of == EDGE else 1
    path = place.file("record.json", of, number)
    damage(path)
    (found,) = place.verify().problems
    assert (found.kind, found.status, found.path) == ("record", "mismatch", str(path))
    assert found.edge == f"{of} version {number}"
    assert found.expected == place.tracking.version(of, number).model.record
    path.unlink()
    (found,) = place.verify().problems
    assert (found.kind, found.status) == ("record", "missing")


def test_a_record_written_again_with_another_figure(place):
    """Canonical and readable, but not the one that was registered."""
    path = place.file("record.json")
    plain = json.loads(path.read_bytes())
    plain["parents"] = []
    path.write_bytes(canonical(plain))
    (found,) = place.verify().problems
    assert (found.kind, found.status) == ("record", "mismatch")


def test_a_record_of_a_newer_format(place):
    """As a newer release would register it: all digests fit, but this one cannot read it."""
    path = place.file("record.json")
    plain = json.loads(path.read_bytes()) | {"format": "stillmark-record/9"}
    path.write_bytes(canonical(plain))
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    old = place.tracking.version(EDGE, 2).model.record
    place.let_go()
    with sqlite3.connect(place.root / "mlflow.db") as connection:
        for table in ("tags", "model_version_tags"):
            swap = f"UPDATE {table} SET value = replace(value, ?, ?)"  # noqa: S608 - our own words
            connection.execute(swap, (old, new))
    found = [one for one in place.verify().problems if one.kind == "record"]
    assert [(one.status, one.expected, one.found) for one in found] == [("missing", new, new)]
    assert "stillmark-record/9" in found[0].sentence


def test_a_bit_of_the_manifest(place):
    manifest = (place.root / "prepared" / "manifest.parquet").read_bytes()
    cached = place.object(place.cache, manifest)
    flip(cached)
    (found,) = place.verify().problems
    assert (found.kind, found.status, found.path) == ("prepared data", "mismatch", str(cached))
    assert found.subject.endswith("manifest.parquet in the cache")
    flip(place.object(place.remote, manifest))
    subjects = [one.subject.rpartition(": ")[2] for one in place.verify().problems]
    assert subjects == ["manifest.parquet in the cache", "manifest.parquet in the remote 'here'"]


def test_data_that_is_whole_but_not_what_was_recorded(place):
    """DVC's md5 fits, the recorded sha256 does not: as where somebody found an md5 collision."""
    audited = place.tracking.version(EDGE, 2)
    path = place.file("record.json")
    plain = json.loads(path.read_bytes())
    plain["data"] |= {"manifest": "0" * 64, "content": "1" * 64}
    plain["parents"] = []
    path.write_bytes(canonical(plain))
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    place.let_go()
    with sqlite3.connect(place.root / "mlflow.db") as connection:
        for table in ("tags", "model_version_tags"):
            swap = f"UPDATE {table} SET value = replace(value, ?, ?)"  # noqa: S608 - our own words
            connection.execute(swap, (audited.model.record, new))
    found = {(one.kind, one.expected, one.status) for one in place.verify().problems}
    assert ("manifest", "0" * 64, "mismatch") in found
    assert ("prepared data", "1" * 64, "mismatch") in found


@pytest.mark.parametrize("where", ["cache", "remote"])
def test_a_bit_of_a_raw_file(place, where):
    path = place.object(getattr(place, where), RAW["rows.csv"])
    flip(path)
    (found,) = place.verify().problems
    assert (found.kind, found.status, found.path) == ("raw data", "mismatch", str(path))
    assert (found.edge, found.size_bytes) == (f"raw data {place.run.data.raw}", 320)
    assert found.expected == hashlib.md5(RAW["rows.csv"], usedforsecurity=False).hexdigest()


def test_a_raw_file_that_is_gone(place):
    cached, pushed = (place.object(where, RAW["0/a.png"]) for where in (place.cache, place.remote))
    cached.unlink()
    assert place.verify().passed  # a cache may be emptied: the remote has it
    pushed.unlink()
    (found,) = place.verify().problems
    assert (found.kind, found.status) == ("raw data", "missing")
    assert found.subject.endswith("0/a.png")
    cached.write_bytes(RAW["0/a.png"])
    (found,) = place.verify().problems
    assert (found.status, found.path) == ("missing", str(pushed))


def test_a_version_that_was_never_pushed_is_said_and_one_that_nobody_has_is_missing(place):
    shutil.rmtree(place.remote / "files")
    report = place.verify()
    assert report.passed
    said = {one.edge for one in report.findings if "never pushed" in one.sentence}
    assert said == {
        f"{kind} {getattr(place.run.data, kind[:-5])}" for kind in ("raw data", "prepared data")
    }
    shutil.rmtree(place.cache / "files")
    kinds = {(one.kind, one.status) for one in place.verify().problems}
    assert kinds == {("raw data", "missing"), ("prepared data", "missing")}


def test_a_remote_that_is_not_there(place):
    shutil.rmtree(place.remote)
    found = place.verify().problems
    assert {(one.kind, one.status) for one in found} == {
        ("raw data", "missing"),
        ("prepared data", "missing"),
    }
    assert all("mount it" in one.sentence for one in found)


def test_a_remote_that_does_not_answer(place, monkeypatch):
    def refuse(_self, _directory):
        raise SetupError("DVC's remote 'there' does not answer: connection refused")

    monkeypatch.setattr(Cache, "copies", refuse)
    found = place.verify().problems
    assert {(one.kind, one.status) for one in found} == {
        ("raw data", "missing"),
        ("prepared data", "missing"),
    }
    assert all(one.sentence.endswith("connection refused") for one in found)


def test_a_ledger_row(place):
    with sqlite3.connect(place.root / "ledger.db") as connection:
        connection.execute("DROP TRIGGER stillmark_no_update")
        connection.execute(
            "UPDATE stillmark_ledger SET reason = 'as good at any' WHERE sequence = 1"
        )
    (found,) = place.verify().problems
    assert (found.edge, found.kind, found.status) == (f"ledger of {EDGE}", "ledger", "mismatch")
    assert "row 1 was changed" in found.sentence


def test_a_ledger_row_that_cannot_be_read(place):
    with sqlite3.connect(place.root / "ledger.db") as connection:
        connection.execute("DROP TRIGGER stillmark_no_update")
        connection.execute("UPDATE stillmark_ledger SET time = 'noon' WHERE sequence = 2")
    (found,) = place.verify().problems
    assert (found.kind, found.status) == ("ledger", "mismatch")
    assert "row 2" in found.sentence


def test_an_alias_moved_by_hand(place):
    place.tracking.client.set_registered_model_alias(EDGE, CHAMPION, "1")
    (found,) = place.verify().problems
    assert (found.edge, found.kind, found.status) == (f"ledger of {EDGE}", "ledger", "mismatch")
    assert "moved by hand" in found.sentence


def test_a_registry_rewritten_throughout_is_told_by_the_ledger(place):
    """Record, files and every tag changed to fit one another: only the ledger remembers."""
    path = place.file("record.json")
    old = place.tracking.version(EDGE, 2).model.record
    plain = json.loads(path.read_bytes())
    plain["metrics"] = {"weight": 1.0}
    path.write_bytes(canonical(plain))
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    place.let_go()
    with sqlite3.connect(place.root / "mlflow.db") as connection:
        for table in ("tags", "model_version_tags"):
            swap = f"UPDATE {table} SET value = replace(value, ?, ?)"  # noqa: S608 - our own words
            connection.execute(swap, (old, new))
    (found,) = place.verify().problems
    assert (found.kind, found.status, found.expected, found.found) == (
        "ledger",
        "mismatch",
        old,
        new,
    )


@pytest.mark.parametrize("what", ["model.onnx", "everything"])
def test_swapped_artifacts_are_found_in_both(place, what):
    first, second = (place.folder(EDGE, number) for number in (1, 2))
    one, other = first, second
    if what != "everything":
        one, other = (place.file("salt.txt", EDGE, number) for number in (1, 2))
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    for number in (1, 2):
        report = place.verify(number)
        assert {found.edge for found in report.problems} == {f"{EDGE} version {number}"}
        expected = "file" if what != "everything" else "record"
        assert expected in {found.kind for found in report.problems}
        assert {found.status for found in report.problems} == {"mismatch"}


@pytest.mark.parametrize("how", ["model", "files"])
def test_a_deleted_parent(place, how):
    parent = place.tracking.version(TEACHER, 1).model.model_id
    if how == "model":
        place.tracking.client.delete_logged_model(parent)
    else:
        shutil.rmtree(place.folder(TEACHER, 1))
    (found,) = place.verify().problems
    assert (found.kind, found.status) == ("parent", "missing")
    assert parent in found.sentence


@pytest.mark.parametrize(
    "tag", ["stillmark.record", "stillmark.content", "stillmark.ref", "stillmark.ref of the run"]
)
def test_an_edited_tag(place, tag):
    client, version = place.tracking.client, place.tracking.version(EDGE, 2)
    if tag.endswith("run"):
        changed = version.model.model_copy(update={"content": "0" * 64}).model_dump_json()
        client.set_tag(version.model.run_id, "stillmark.ref", changed)
    elif tag == "stillmark.ref":
        first = place.tracking.version(EDGE, 1).model.model_id
        changed = version.model.model_copy(update={"model_id": first}).model_dump_json()
        client.set_model_version_tag(EDGE, "2", tag, changed)
    else:
        client.set_model_version_tag(EDGE, "2", tag, "0" * 64)
    report = place.verify()
    (found,) = report.problems
    assert (found.kind, found.status, found.edge) == ("tag", "mismatch", f"{EDGE} version 2")
    assert tag in found.subject
    assert found.expected != found.found


@pytest.mark.parametrize("name", ["stillmark.key", "stillmark.stage"])
def test_an_edited_or_removed_tag_of_the_run(place, name):
    client, run_id = place.tracking.client, place.tracking.version(EDGE, 2).model.run_id
    client.set_tag(run_id, name, "something else")
    (found,) = place.verify().problems
    assert (found.kind, found.status, found.found) == ("tag", "mismatch", "something else")
    client.delete_tag(run_id, name)
    (found,) = place.verify().problems
    assert (found.kind, found.status) == ("tag", "missing")


def test_a_parents_tag_is_the_parents(place):
    place.tracking.client.set_model_version_tag(TEACHER, "1", "stillmark.content", "0" * 64)
    (found,) = place.verify().problems
    assert (found.edge, found.kind, found.status) == (f"{TEACHER} version 1", "tag", "mismatch")


def test_a_reference_that_is_no_reference(place):
    version = place.tracking.version(EDGE, 2)
    place.tracking.client.set_model_version_tag(EDGE, "2", "stillmark.ref", "{}")
    report = verify(place.tracking, place.versions, place.succession, version)
    (found,) = report.problems
    assert (found.kind, found.status, found.found) == ("tag", "mismatch", "{}")


def test_code_that_git_does_not_have_or_has_otherwise(place):
    shutil.rmtree(place.root / ".git")
    found = place.verify().problems
    assert {(one.kind, one.status) for one in found} == {("code", "missing")}


def test_code_of_an_unclean_tree_is_declared(place, monkeypatch, linear):
    dirty = Code(digest="0" * 64, commit=None, clean=False)
    monkeypatch.setattr(origin, "code", lambda: dirty)
    ref = toy_of(linear).make(place, "good", 7)
    place.tracking.register(EDGE, ref, {})
    report = place.verify(3)
    (found,) = [one for one in report.findings if one.kind == "code"]
    assert (found.status, found.found) == ("declared", "0" * 64)
    assert report.passed


def test_another_instruction_set_is_declared(place, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "OTHER")
    found = [one for one in place.verify().findings if one.kind == "environment"]
    assert {one.status for one in found} == {"declared"}
    assert all("(here OTHER)" in one.sentence for one in found)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pem").write_bytes(secret)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


def test_a_signature_has_to_fit(place, keys, tmp_path):
    ours, theirs = keys / "ours.pub", keys / "theirs.pub"
    (found,) = place.verify(key=ours).problems
    assert (found.kind, found.status) == ("signature", "missing")
    version = place.tracking.version(EDGE, 2)
    shown = tmp_path / "shown"
    shutil.copytree(place.folder(), shown, ignore=shutil.ignore_patterns("registered_model_meta"))
    signature = sign(shown, keys / "ours.pem", tmp_path / "model.sig")
    place.tracking.client.log_artifact(version.model.run_id, str(signature))
    report = place.verify(key=ours)
    assert report.passed
    assert [one.status for one in report.findings if one.kind == "signature"] == ["verified"]
    (found,) = place.verify(key=theirs).problems
    assert (found.kind, found.status) == ("signature", "mismatch")
    with pytest.raises(SetupError, match="cannot be read"):
        place.verify(key=keys / "nobody.pub")


def test_all_that_holds_an_alias_is_verified_once(place):
    place.tracking.client.set_registered_model_alias(TEACHER, "reference", "1")
    flip(place.file("weights.safetensors", TEACHER, 1))
    reports = verify_all(place.tracking, place.versions, place.succession)
    assert [(one.name, one.version) for one in reports] == [(EDGE, 2), (TEACHER, 1)]
    first, second = (one.problems for one in reports)
    assert first == second
    assert [found.edge for found in first] == [f"{TEACHER} version 1"]


def test_a_champion_that_the_registry_lost_is_missing(place):
    place.tracking.client.delete_registered_model_alias(EDGE, CHAMPION)
    place.tracking.client.delete_model_version(EDGE, "2")
    (report,) = verify_all(place.tracking, place.versions, place.succession)
    kinds = {(one.kind, one.status) for one in report.problems}
    assert {("record", "missing"), ("ledger", "mismatch")} <= kinds


def test_findings_are_plain_json():
    one = Finding.of("digits.edge version 1", "model.onnx", "file", "verified", size_bytes=3)
    assert Finding.model_validate_json(one.model_dump_json()) == one


@pytest.mark.slow
def test_what_the_command_made_is_what_was_recorded(finished):
    """A real chain, DVC's own cache, the commit of a real repository."""
    settings = Settings(project=finished.project.root)
    succession = Succession.of(settings)
    versions = Versions(settings.root, settings.home)
    reports = verify_all(succession.tracking, versions, succession)
    assert [one.name for one in reports] == [EDGE]
    (report,) = reports
    assert report.passed, report.problems
    roles = ("edge", "pruned", "student", "teacher", "encoder")
    for role in roles:
        assert report.edges[f"digits.{role} version 1"] == "verified"
    code = [one.status for one in report.findings if one.kind == "code"]
    assert code == ["verified"] * len(roles)
