"""Garbage collection of a real store: what goes, what stays whole, and what a kill leaves."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from tasks.catalogue import Catalogue
from tasks.collect import Collector, GcParams
from tasks.errors import ParamsError, RegistryError
from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
from tasks.params import load
from tasks.refs import DataRef
from tasks.sections import Section, parse
from tasks.settings import Settings
from tasks.stage import Run, stage
from tasks.succession import Succession
from tasks.trace import trace
from tasks.tracking import EVALUATION_TAG, Tracking
from tasks.verify import verify_all
from tasks.versioning import Places, Versions
from tests.conftest import REPOSITORY, toy_of
from tests.dvc_store import keep_all
from tests.team import mlflow_server

EDGE, TEACHER = "digits.edge", "digits.teacher"
NOW = GcParams(keep_last=1, keep_days=0)


class Nothing(Section):
    salt: int = 0


def learn(work, params):
    (work.folder / "weights.bin").write_bytes(bytes([params.salt]) * 5000)
    return {}


def report(work, params, **models):
    (work.folder / "report.json").write_text(json.dumps({"salt": params.salt}))
    return {}


@dataclass(frozen=True)
class Store:
    """Two data versions, a teacher on each, five edge versions, of which the third is champion.

    The first data version is named by neither git nor the working tree.
    """

    root: Path
    old: Run
    new: Run
    toy: object

    @property
    def settings(self):
        return Settings()

    @property
    def tracking(self):
        return Tracking(self.settings.tracking_uri, self.settings.home)

    @property
    def versions(self):
        found = Versions(self.root, self.root / ".stillmark")
        # Asking DVC takes a second.
        found.cache.places = Places(self.root / ".dvc" / "cache", None, None)
        return found

    def collector(self, params=NOW, **more):
        found = Collector(self.settings, "digits", params, **more)
        found.__dict__["versions"] = self.versions
        return found

    def numbers(self, name=EDGE):
        return {int(one.version) for one in self.tracking.versions(name)}

    def size(self):
        """Bytes of all files but those of databases and locks, by the file system."""
        folders = (".stillmark/artifacts", ".stillmark/checkpoints", ".dvc/cache")
        files = [path for name in folders for path in (self.root / name).rglob("*")]
        return sum(path.stat().st_size for path in files if path.is_file())


def git(root, *words):
    who = ["-c", "user.name=Tests", "-c", "user.email=tests@localhost"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def data_of(root, salt, more):
    """A data version in DVC's cache: rows shared with every other, and files of its own."""
    prepared = root / "prepared"
    contents = {path.name: path.read_bytes() for path in prepared.iterdir()}
    cache = root / ".dvc" / "cache"
    return DataRef(
        raw=keep_all(cache, {"shared.csv": b"x,y\n" * 300, "own.csv": bytes([salt]) * 700}),
        prepared=keep_all(cache, contents | more),
        manifest=digest_of_file(prepared / "manifest.parquet").sha256,
        content=digest_of_files(digests_of_folder(prepared)),
    )


def point_at(root, data):
    """Makes a data version the working tree's."""
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": data.raw, "path": "data"}]}))
    outs = [{"md5": data.prepared, "path": "prepared"}]
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"prepare": {"outs": outs}}}))


def make(root, template, toy):
    shutil.copytree(template, root, ignore=shutil.ignore_patterns("data", "data.dvc"))
    params = load(root)
    first, second = data_of(root, 1, {"old.txt": b"old" * 300}), data_of(root, 2, {})
    point_at(root, second)
    git(root, "init", "-q")
    git(root, "add", "data.dvc", "dvc.lock")
    git(root, "commit", "-qm", "data")
    store = Store(
        root,
        Run(params.project, params.compute, first),
        Run(params.project, params.compute, second),
        toy,
    )
    tracking, succession = store.tracking, Succession.of(store.settings)
    for number, run in enumerate((store.old, store.new)):
        teacher = stage("teacher")(learn)._run(run, Nothing(salt=number))
        tracking.register(TEACHER, teacher, {})
        for salt in range(2 + number):
            bench = replace(store, new=run)
            edge = toy.make(Where(bench), salt=10 * number + salt, teacher=teacher)
            told = stage("evaluation", is_model=False)(report)._run(
                run, Nothing(salt=10 * number + salt), edge=edge
            )
            version = tracking.register(EDGE, edge, {EVALUATION_TAG: told.record})
            if (number, salt) == (1, 0):
                intent = succession.intend(version, "promoted", "as good as any")
                succession.install(intent, version)
    return store


@dataclass(frozen=True)
class Where:
    """What `Toy.make` wants to know of a store."""

    store: Store

    @property
    def run(self):
        return self.store.new


@pytest.fixture(scope="module")
def _made(tmp_path_factory, bench_template, linear):
    root = tmp_path_factory.mktemp("collect") / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLMARK_PROJECT", str(root))
        store = make(root, bench_template, toy_of(linear))
        let_go(store)
        shutil.copytree(root, root.with_name("as it was"), symlinks=True)
        yield store


@pytest.fixture
def store(_made):
    yield _made
    let_go(_made)
    shutil.rmtree(_made.root)
    shutil.copytree(_made.root.with_name("as it was"), _made.root, symlinks=True)


def let_go(store):
    """Closes the databases, so that their files can be put back."""
    client = store.tracking.client
    client._tracking_client.store.engine.dispose()
    client._get_registry_client().store.engine.dispose()


def by_kind(found):
    kinds = {}
    for item in found.items:
        kinds.setdefault(item.kind, set()).add(item.name)
    return kinds


def checked(store):
    """What `verify --all` accuses, and what cannot be fetched of all that is registered."""
    succession = Succession.of(store.settings)
    reports = verify_all(store.tracking, store.versions, succession)
    for name in store.tracking.registered():
        for version in store.tracking.versions(name):
            store.tracking.fetch(store.tracking.ref_of(version))
    return [one.sentence for found in reports for one in found.problems]


def test_what_nothing_leads_to_goes_and_the_rest_stays_whole(store):
    before = store.size()
    plan = store.collector().find()
    planned = plan.planned()
    assert store.size() == before
    assert store.numbers() == {1, 2, 3, 4, 5}
    found = plan.collect()
    assert found.problems == found.left == ()
    assert found.items == planned.items
    assert by_kind(found)["version"] == {f"{EDGE}:1", f"{EDGE}:2", f"{EDGE}:4", f"{TEACHER}:1"}
    # A teacher and three edges; each with its run, each edge with the run of its evaluation.
    assert len(by_kind(found)["model"]) == 4
    assert len(by_kind(found)["run"]) == 7
    old = store.old.data
    assert {old.raw, old.prepared} <= by_kind(found)["data"]
    assert len(by_kind(found)["data"]) == 4  # two listings, and the two files of that version alone
    assert before - store.size() == found.size_bytes > 0
    assert store.numbers() == {3, 5}
    assert store.numbers(TEACHER) == {2}
    assert checked(store) == []
    assert store.collector().find().planned().items == ()


def test_stages_of_what_is_kept_are_reused(store):
    store.collector().find().collect()
    calls = len(store.toy.calls)
    (teacher,) = store.tracking.versions(TEACHER)
    ref = store.tracking.ref_of(teacher)
    store.toy.make(Where(store), salt=12, teacher=ref)
    assert len(store.toy.calls) == calls
    store.toy.make(Where(store), salt=11, teacher=ref)
    assert len(store.toy.calls) == calls + 1


def test_lineage_and_history_of_what_is_kept_go_on(store):
    with Catalogue.of(store.settings) as catalogue:
        assert catalogue.refresh() == 12
        assert len(dict(catalogue.manifests())) == 1
    store.collector().find().collect()
    with Catalogue.of(store.settings) as catalogue:
        for number in (3, 5):
            assert trace(catalogue, store.tracking.version(EDGE, number)).gaps == ()
        assert catalogue.index.count() == 5
        assert catalogue.index.missing() == catalogue.index.unreadable() == []
    assert Succession.of(store.settings).check(EDGE) == []


def test_what_is_young_stays(store):
    found = store.collector(GcParams(keep_last=1, keep_days=1)).find().collect()
    assert found.items == ()
    assert store.numbers() == {1, 2, 3, 4, 5}


def test_what_a_retraining_would_take_stays(store):
    fourth = store.tracking.ref_of(store.tracking.client.get_model_version(EDGE, "1"))
    found = store.collector(reused=(fourth,)).find().collect()
    kinds = by_kind(found)
    assert kinds["version"] == {f"{EDGE}:2", f"{EDGE}:4"}
    assert fourth.model_id not in kinds["model"]
    assert fourth.run_id not in kinds["run"]
    assert "data" not in kinds
    store.tracking.fetch(fourth)


def test_data_that_a_commit_names_stays(store):
    point_at(store.root, store.old.data)
    git(store.root, "checkout", "-qb", "side")
    git(store.root, "commit", "-qam", "old data")
    git(store.root, "checkout", "-q", "-")
    assert "data" not in by_kind(store.collector().find().planned())


def test_what_killed_processes_left_goes(store):
    home, tracking = store.root / ".stillmark", store.tracking
    finished = tracking.ref_of(tracking.versions(EDGE)[0]).key
    for name in (f"{finished}.pt", f"{'0' * 64}.pt", f"{'1' * 64}.partial"):
        (home / "checkpoints").mkdir(exist_ok=True)
        (home / "checkpoints" / name).write_bytes(b"weights")
    orphan = home / "artifacts" / ("a" * 32) / "artifacts"
    orphan.mkdir(parents=True)
    (orphan / "half.bin").write_bytes(b"half")
    (home / "tmpabc").mkdir()
    failed, running = (tracking.start("digits", "teach") for _ in range(2))
    tracking.store_report(failed, store.root / "prepared")
    tracking.fail(failed, "killed")
    other = tracking.start("another", "teach")
    tracking.fail(other, "killed")
    found = store.collector(GcParams(keep_last=9, keep_days=0)).find().collect()
    kinds = by_kind(found)
    assert kinds.keys() == {"run", "files", "checkpoint", "partial"}
    assert kinds["run"] == {failed}
    assert kinds["files"] == {str(orphan.parent)}
    assert kinds["checkpoint"] == {f"{finished}.pt", f"{'0' * 64}.pt", f"{'1' * 64}.partial"}
    assert kinds["partial"] == {".stillmark/tmpabc"}
    assert not orphan.parent.exists()
    assert tracking.knows(running)
    assert tracking.knows(other)
    assert not tracking.knows(failed)


def test_a_checkpoint_that_may_be_resumed_stays(store):
    place = store.root / ".stillmark" / "checkpoints"
    place.mkdir()
    (place / f"{'0' * 64}.pt").write_bytes(b"weights")
    found = store.collector(GcParams(keep_last=9, keep_days=1)).find().planned()
    assert found.items == ()


def test_versions_of_others_and_what_they_name_stay(store):
    """Another project's registered model may be a model of ours."""
    tracking = store.tracking
    mine = tracking.ref_of(tracking.client.get_model_version(EDGE, "1"))
    tracking.register("shop.edge", mine, {})
    found = by_kind(store.collector().find().collect())
    assert f"{EDGE}:1" not in found["version"]
    left = store.tracking.client.get_model_version(EDGE, "1")
    assert EVALUATION_TAG not in left.tags  # nothing needs the report, which is gone
    assert mine.model_id not in found["model"]
    assert len(tracking.versions("shop.edge")) == 1
    tracking.fetch(mine)


def test_a_shared_cache_is_left_alone(store, tmp_path):
    collector = store.collector()
    cache = shutil.copytree(store.root / ".dvc" / "cache", tmp_path / "shared")
    collector.versions.cache.places = Places(cache, None, None)
    found = collector.find().collect()
    assert "data" not in by_kind(found)
    assert [line for line in found.left if "others may use it" in line]
    assert len([path for path in cache.rglob("*") if path.is_file()]) > 8


def test_a_damaged_record_keeps_every_model(store):
    ref = store.tracking.ref_of(store.tracking.versions(EDGE)[0])
    (store.tracking.stored_at(ref.model_id) / "record.json").write_text("{")
    found = store.collector().find().collect()
    assert ref.record in found.left[0]
    assert by_kind(found).keys() <= {"version"}
    store.tracking.fetch(store.tracking.ref_of(store.tracking.client.get_model_version(EDGE, "3")))


def test_what_cannot_be_deleted_is_named_and_tried_again(store, monkeypatch):
    plan = store.collector().find()
    name = next(iter(plan.models))

    def refuse(self, place):
        if name in place:
            raise PermissionError(13, "Permission denied")
        return whole(self, place)

    whole = Tracking.remove
    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "remove", refuse)
        found = plan.collect()
    assert any(name in line and "Permission denied" in line for line in found.problems)
    assert name not in by_kind(found).get("model", set())
    again = store.collector().find().collect()
    assert again.problems == ()
    assert not list((store.root / ".stillmark" / "artifacts" / "models").glob(name))
    assert checked(store) == []


def test_while_a_version_stays_so_does_all_that_it_names(store, monkeypatch):
    def refuse(self, name, number):
        if (name, number) == (EDGE, 2):
            raise RegistryError("no")
        return whole(self, name, number)

    whole = Tracking.drop_version
    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "drop_version", refuse)
        found = store.collector().find().collect()
    assert found.problems == (f"{EDGE}:2: no",)
    assert by_kind(found) == {"version": {f"{EDGE}:1", f"{EDGE}:4", f"{TEACHER}:1"}}
    store.tracking.fetch(store.tracking.version(EDGE, 2).model)
    copies = store.versions.cache.copies(store.old.data.raw)
    assert [one for one in copies if not one.is_whole] == []


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import tests.tasks.test_collect as module
from tasks.judge import ancestry
from tasks.settings import Settings
from tasks.tracking import Tracking

root, kills = Path(sys.argv[1]), int(sys.argv[2])
os.environ["STILLMARK_PROJECT"] = str(root)
store = module.Store(root, None, None, None)
dice = random.Random(7)
for at in range(kills + 1):
    child = os.fork()
    if not child:
        store.collector().find().collect()
        os._exit(0)
    if at < kills:
        time.sleep(dice.uniform(0.5, 4.0))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    child = os.fork()
    if not child:
        tracking = store.tracking
        for name in tracking.registered():
            for noted in tracking.versions(name):
                version = tracking.version(name, int(noted.version))
                assert ancestry(tracking, version)[0] == (), version
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("killed" if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
def test_killed_anywhere_it_leaves_nothing_half_and_the_next_finishes(store):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(store.root), "6"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert "killed" in said
    assert said[-1] == "0"
    assert store.numbers() == {3, 5}
    assert checked(store) == []
    assert store.collector().find().planned().items == ()


@pytest.mark.slow
def test_a_server_s_store_is_collected_too(tmp_path, bench_template, linear, inside):
    def size():
        files = (tmp_path / "artifacts").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    with mlflow_server(tmp_path, f"sqlite:///{tmp_path / 'server.db'}") as uri:
        inside(tmp_path / "project", uri)
        store = make(tmp_path / "project", bench_template, toy_of(linear))
        before = size()
        found = store.collector().find().collect()
        assert found.problems == ()
        assert store.numbers() == {3, 5}
        results = sum(item.size_bytes for item in found.items if item.kind in {"run", "model"})
        assert before - size() == results > 0
        assert checked(store) == []
        assert store.collector().find().planned().items == ()


def test_senseless_parameters_are_refused():
    for wrong in ({"keep_last": 0}, {"keep_days": -1.0}, {"keep": 3}):
        with pytest.raises(ParamsError, match="gc"):
            parse(GcParams, wrong, "gc")
