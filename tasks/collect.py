"""Garbage collection: what nothing leads to is deleted, registry entries before files.

A version goes before its run, a run stops being a result before its files go, and its rows go last:
whatever ends the process in between, nothing that looks whole is not, and the next collection
finishes. What is reachable, `tasks.reachable` says.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from tasks.catalogue import FOLDER as LINEAGE
from tasks.catalogue import INDEX_FILE, LOCK, LOCK_SECONDS, ROWS_FOLDER
from tasks.errors import ArtifactError, DataError, RegistryError, SetupError
from tasks.inventory import Inventory, named_as, named_by, reader, take
from tasks.leftovers import Leftover, of_checkpoints, of_work, removed, size_below
from tasks.lineage.index import Index
from tasks.lineage.row_sets import RowSets
from tasks.reachable import Facts, Node, Reach, Rules, garbage, roots, unevaluated
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.settings import Settings
from tasks.succession import Succession
from tasks.tracking import Tracking, clear_errors, local_folder
from tasks.versioning import LISTED, Versions

Kind = Literal["version", "run", "model", "files", "checkpoint", "partial", "data", "flow run"]
NOBODYS, MODELS = "artifacts", "models"
RUN_DIGITS = 32


class GcParams(Section):
    """Section `gc` of params.yaml: what `stillmark gc` keeps though nothing leads to it.

    Attributes:
        keep_last: So many of the newest versions of each model, and as many of those that a
            backfill made of it, with all that they come from.
        keep_days: Whatever is younger.
    """

    keep_last: Annotated[int, Field(ge=1)] = 3
    keep_days: Annotated[float, Field(ge=0)] = 7.0


class Item(BaseModel):
    """Something that nothing leads to.

    Attributes:
        kind: What it is; `files` are artifacts of no run.
        name: Its id, name or path.
        size_bytes: What deleting it frees.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kind: Kind
    name: str
    size_bytes: int


class Collected(BaseModel):
    """What was collected, or would be.

    Attributes:
        dry_run: Whether nothing was deleted.
        items: What went, or would go.
        left: What was not looked at or not touched, and why, one sentence each.
        problems: What could not be deleted, and why, one sentence each; the next run tries again.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dry_run: bool
    items: tuple[Item, ...]
    left: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def freed(self) -> dict[str, tuple[int, int]]:
        """How many items and how many bytes, by kind."""
        found: dict[str, tuple[int, int]] = {}
        for item in self.items:
            count, size = found.get(item.kind, (0, 0))
            found[item.kind] = count + 1, size + item.size_bytes
        return found

    @property
    def size_bytes(self) -> int:
        """Bytes in all."""
        return sum(item.size_bytes for item in self.items)


@dataclass(frozen=True)
class Collector:
    """One collection.

    Attributes:
        settings: Where the project is.
        project: Its name.
        params: What is kept.
        reused: Results that a retraining would take as they are.
    """

    settings: Settings
    project: str
    params: GcParams
    reused: tuple[ModelRef, ...] = ()

    @cached_property
    def succession(self) -> Succession:
        """The ledger and the registry."""
        return Succession.of(self.settings)

    @property
    def tracking(self) -> Tracking:
        """The store."""
        return self.succession.tracking

    @cached_property
    def versions(self) -> Versions:
        """The data."""
        return Versions.of(self.settings)

    @cached_property
    def since(self) -> datetime:
        """Whatever is from then on is kept."""
        return datetime.now(UTC) - timedelta(days=self.params.keep_days)

    def find(self) -> "Garbage":
        """Looks at everything and deletes nothing.

        Raises:
            SetupError: The store, git or a remote does not answer.
            LedgerError: The ledger cannot be read.
        """
        with clear_errors(self.tracking.uri):
            inventory = take(self.tracking, self.project)
            reach = self._reach(inventory.facts)
            if reach.unreadable:
                reach.keep_all_results()
            found = Garbage(self, inventory, reach)
            found.look()
        return found

    def _reach(self, facts: Facts) -> Reach:
        reach = Reach(facts, reader(self.tracking))
        reach.extend(roots(facts, Rules(self.params.keep_last, self.since)))
        reach.extend(named_by(self.succession.ledger))
        reach.extend(named_as(self.reused))
        return reach


@dataclass
class Garbage:
    """What a collection found.

    Attributes:
        collector: The collection.
        inventory: What the store holds.
        reach: What is kept.
    """

    collector: Collector
    inventory: Inventory
    reach: Reach

    def __post_init__(self) -> None:
        self.left = [
            f"every model and all data: what is kept descends from {digest}, and {why}"
            for digest, why in self.reach.unreadable.items()
        ]
        self._failed: dict[str, str] = {}
        self._gone: set[str] = set()

    @property
    def reached(self) -> set[Node]:
        """What is kept."""
        return self.reach.nodes

    @property
    def tracking(self) -> Tracking:
        """The store."""
        return self.collector.tracking

    @cached_property
    def facts(self) -> Facts:
        """Versions, runs and models that nothing leads to."""
        return garbage(self.inventory.facts, self.reached)

    def look(self) -> None:
        """Fills the lists of what is garbage, with its size."""
        runs = sorted(self.facts.runs, key=lambda one: one.touched, reverse=True)
        # A run's own files by address; what was begun by an earlier collection comes first.
        self.runs: dict[str, list[str]] = dict(self.inventory.begun)
        self.runs |= {one.run_id: self._places(one.run_id) for one in runs}
        self.models = {one.model_id: self._place(one.model_id) for one in self.facts.models}
        self.sizes = {place: self._size(place) for place in self._all_places()}
        self.files = {str(path): size_below(path) for path in self._of_nobody()}
        self.checkpoints = list(self._checkpoints())
        self.work = list(of_work(self.collector.settings, self.collector.since))
        self.data = list(self._data())

    def _places(self, run_id: str) -> list[str]:
        address = self.inventory.runs[run_id].info.artifact_uri
        return [address] if address and run_id in address else []

    def _place(self, model_id: str) -> str:
        address = self.inventory.models[model_id].artifact_location
        return address if model_id in address else ""

    def _all_places(self) -> set[str]:
        lists = [*self.runs.values(), self.models.values()]
        return {place for places in lists for place in places if place}

    def _size(self, place: str) -> int:
        try:
            return self.tracking.size_of(place)
        except ArtifactError as error:
            self.left.append(str(error))
            return 0

    @property
    def items(self) -> tuple[Item, ...]:
        """All of it."""
        models = {self._place(model_id) for model_id in self.models}
        versions = [one.node.name for one in self.facts.versions]
        return (
            *(Item(kind="version", name=name, size_bytes=0) for name in versions),
            *(self._run_item(run_id, set(places) - models) for run_id, places in self.runs.items()),
            *(
                Item(kind="model", name=name, size_bytes=self.sizes.get(place, 0))
                for name, place in self.models.items()
            ),
            *(Item(kind="files", name=path, size_bytes=size) for path, size in self.files.items()),
            *(self._item("checkpoint", one) for one in self.checkpoints),
            *(self._item("partial", one) for one in self.work),
            *(self._item("data", one) for one in self.data),
        )

    def _run_item(self, run_id: str, places: Iterable[str]) -> Item:
        size = sum(self.sizes.get(place, 0) for place in places)
        return Item(kind="run", name=run_id, size_bytes=size)

    def _item(self, kind: Kind, one: Leftover) -> Item:
        return Item(kind=kind, name=one.name, size_bytes=one.size_bytes)

    def _of_nobody(self) -> Iterator[Path]:
        """Folders of artifacts whose run or model the store does not know."""
        settings = self.collector.settings
        root = settings.home / NOBODYS
        if settings.mlflow_uri is not None:
            if root.is_dir():
                self.left.append(f"{root}: STILLMARK_MLFLOW_URI names another store than it is of")
            return
        known = {node.name for node in self.reached} | self.inventory.runs.keys()
        known |= self.inventory.models.keys()
        folders = [path for path in root.glob("*") if len(path.name) == RUN_DIGITS]
        folders += root.glob(f"{MODELS}/m-*")
        for path in folders:
            is_old = path.stat().st_ctime < self.collector.since.timestamp()
            if is_old and path.name not in known and not self.tracking.knows(path.name):
                yield path

    def _checkpoints(self) -> Iterator[Leftover]:
        finished = {one.key for one in self.inventory.facts.runs if one.record and one.key}
        return of_checkpoints(self.collector.settings, self.collector.since, finished)

    def _data(self) -> Iterator[Leftover]:
        """Files in DVC's cache that no kept data version holds."""
        versions = self.collector.versions
        try:
            if versions.cache.is_shared:
                folder = versions.cache.places.cache
                self.left.append(f"{folder}: it lies outside the project, others may use it")
                return
            kept = self._kept_files(versions)
        except SetupError as error:
            self.left.append(f"DVC's cache: {error}")
            return
        for name, path in versions.cache.files():
            found = path.lstat()
            if name not in kept and found.st_ctime < self.collector.since.timestamp():
                size = size_below(path)
                yield Leftover(name or str(path), path, size)

    def _kept_files(self, versions: Versions) -> set[str]:
        """md5 of every file of a data version that is kept."""
        kept = {node.name for node in self.reached if node.kind == "data"}
        kept |= versions.history.named()
        if self.reach.unreadable:
            kept |= {name for name, _ in versions.cache.files() if name}
        for name in [one for one in kept if one.endswith(LISTED)]:
            try:
                kept |= set(versions.cache.listing(name).values())
            except DataError:
                continue  # nobody has the listing any more: what it named is not known
        return kept

    def collect(self) -> Collected:
        """Deletes all of it, in an order that a kill may cut anywhere.

        Raises:
            SetupError: The store does not answer.
        """
        store = self.tracking
        with clear_errors(store.uri):
            for one in self.facts.versions:
                self._delete(one.node.name, partial(store.drop_version, one.name, one.number))
            for one in unevaluated(self.inventory.facts, self.reached):
                self._try(one.node.name, partial(store.untag_evaluation, one.name, one.number))
            if self._failed:  # what a version still names has to stay
                return self._report()
            self._disown()
            whole = dict(self._failed)
            self._delete_results()
        self._delete_files(with_data=not whole)
        return self._report()

    def _try(self, name: str, *steps: Callable[[], object]) -> bool:
        """Takes steps, or remembers why one failed; nothing more is done to what failed once."""
        if name in self._failed:
            return False
        try:
            for step in steps:
                step()
        except (ArtifactError, RegistryError, OSError) as error:
            self._failed[name] = str(error)
            return False
        return True

    def _delete(self, name: str, *steps: Callable[[], object]) -> None:
        """Takes all the steps that delete something."""
        if self._try(name, *steps):
            self._gone.add(name)

    def _disown(self) -> None:
        """Makes runs no results any more, the newest first: a child goes before its parents."""
        of_run: dict[str, list[str]] = defaultdict(list)
        for one in self.facts.models:
            of_run[one.run_id or ""].append(one.model_id)
        for run_id, places in self.runs.items():
            if run_id in self.inventory.begun:
                continue
            models = of_run[run_id]
            places += [place for name in models if (place := self.models[name])]
            run = self.inventory.runs[run_id]
            self._try(run_id, partial(self.tracking.disown, run, places))
            if run_id in self._failed:
                self._failed |= dict.fromkeys(models, f"run {run_id} still names it")
        if self.runs or self.models:
            self._forget_index()

    def _forget_index(self) -> None:
        """The next question fills it again, from what is left."""
        folder = self.collector.settings.writable_home() / LINEAGE
        if not (folder / INDEX_FILE).is_file():
            return
        with FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            index = Index(folder / INDEX_FILE)
            index.clear()
            index.close()
            RowSets(folder / ROWS_FOLDER).clear()

    def _delete_results(self) -> None:
        """Rows of models, then the files of models and runs, then rows of runs."""
        for name, place in self.models.items():
            row = partial(self.tracking.drop_model, name)
            self._delete(name, row, partial(self._remove, place))
        for run_id, places in self.runs.items():
            files = [partial(self._remove, place) for place in places]
            self._delete(run_id, *files, partial(self.tracking.drop_run, run_id))

    def _delete_files(self, *, with_data: bool) -> None:
        """What no store knows of; and data, if nothing stayed that was made from it."""
        for path in self.files:
            self._delete(path, partial(removed, Path(path)))
        for one in (*self.checkpoints, *self.work):
            self._delete(one.name, partial(removed, one.path))
        names = {one.path: one.name for one in self.data if with_data}
        if names:
            stuck = self.collector.versions.cache.delete(names)
            self._failed |= {names[path]: why for path, why in stuck}
            self._gone |= set(names.values()) - self._failed.keys()

    def _remove(self, place: str) -> None:
        if not place:
            return
        self.tracking.remove(place)
        folder = local_folder(place)
        if folder is not None and folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()  # MLflow's folder named by the id, around `artifacts`

    def _report(self) -> Collected:
        gone = tuple(item for item in self.items if item.name in self._gone)
        problems = tuple(f"{name}: {why}" for name, why in self._failed.items())
        return Collected(dry_run=False, items=gone, left=tuple(self.left), problems=problems)

    def planned(self) -> Collected:
        """What `collect` would do."""
        return Collected(dry_run=True, items=self.items, left=tuple(self.left))
