"""Looks at a project with a champion; its data versions are written by hand."""

import io
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks import watch
from tasks.errors import DataError, ParamsError
from tasks.evaluate import Evaluation, Measured
from tasks.gates.budget import Budget
from tasks.journal import Facts as Begun
from tasks.journal import Journal
from tasks.lineage import origin
from tasks.params import load
from tasks.prepare import PrepareParams, prepare
from tasks.processes import Note, Process
from tasks.promote import PromoteParams, promote
from tasks.reasons import Reason
from tasks.refs import DataRef
from tasks.sections import Section, parse
from tasks.settings import Settings
from tasks.signals import Champion, Watched
from tasks.stage import stage
from tasks.tracking import EVALUATION_TAG, PROCESS_TAG, Tracking
from tasks.triggers import TRIGGERS
from tasks.triggers.cron import Cron
from tasks.triggers.drift import Drift
from tasks.triggers.performance import Performance
from tasks.watch import ScheduleParams, look, take_in
from tests.conftest import bench_in, toy_of
from tests.dvc_store import keep_all

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CODE, DATA = TRIGGERS.parse({"name": "code"}), TRIGGERS.parse({"name": "data"})
NIGHTLY = Cron(expression="0 3 * * *")


class Nothing(Section):
    pass


def said_of(accuracy, low):
    """An evaluation's report that says this of the edge model."""

    def evaluation(work, params):
        edge = Measured(
            role="edge",
            accuracy=accuracy,
            low=low,
            high=1.0,
            parameters=1,
            macs=1,
            size_bytes=1,
            latency_p50_ms=1.0,
            latency_p95_ms=1.0,
        )
        found = Evaluation(
            rows=60,
            majority_share=0.4,
            host="here",
            models=(edge,),
            gain_over_control=0.0,
            p_value=1.0,
        )
        (work.folder / "evaluation.json").write_text(found.model_dump_json())
        return {}

    return stage("evaluation", is_model=False)(evaluation)


@pytest.fixture(scope="module")
def crowned(bench_template, linear, raw, tmp_path_factory):
    """A good champion, whose prepared rows lie in DVC's cache."""
    root = tmp_path_factory.mktemp("crowned") / "project"
    with pytest.MonkeyPatch.context() as patch:
        bench = bench_in(root, bench_template, patch)
        shutil.copytree(raw, root / "data")
        (root / ".dvc").mkdir()
        (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
        files = {path.name: path.read_bytes() for path in (root / "prepared").iterdir()}
        prepared = keep_all(root / ".dvc" / "cache", files)
        data = DataRef(**bench.run.data.model_dump() | {"prepared": prepared})
        bench = replace(bench, run=replace(bench.run, data=data))
        report = said_of(0.97, 0.93)._run(bench.run, Nothing())
        made = toy_of(linear).make(bench, "good")
        version = bench.tracking.register(
            f"{bench.run.project}.edge", made, {EVALUATION_TAG: report.record}
        )
        gates = PromoteParams(gates=(Budget(size_kib=1000.0),), latency_calls=10)
        assert promote.fn(bench.run, gates, version).outcome == "promoted"
        bench.tracking.client._tracking_client.store.engine.dispose()
    return root


@dataclass
class Place:
    """A project that triggers look at."""

    root: Path
    settings: Settings
    watched: Watched

    @property
    def home(self):
        return self.root / ".stillmark"

    @property
    def incoming(self):
        return self.root / "incoming"

    def look(self, *triggers, now=NOW):
        return look(self.settings, self.watched, triggers, now)

    def ask(self, trigger, now=NOW):
        """The trigger's own answer."""
        return self.look(trigger, now=now).answers[-1]

    def retrained(self, outcome, reason, **facts):
        """Writes an entry into the journal."""
        journal = Journal.of(self.settings, self.watched.project)
        begun = {"code": origin.code().digest, "sections": self.watched.sections()}
        run_id = journal.open(Begun(reason=reason, **begun | facts))
        tracking = journal.tracking
        gone = Process.mine().model_copy(update={"started": 1}).model_dump_json()
        tracking.client.set_tag(run_id, PROCESS_TAG, gone)
        if outcome != "running":
            data = DataRef(raw="raw.dir", prepared="p", manifest="m", content="c")
            journal.close(run_id, outcome, "it ended", data)
        return journal.entry(run_id)

    def put(self, pictures, folder="unlabelled"):
        (self.incoming / folder).mkdir(parents=True, exist_ok=True)
        for at, picture in enumerate(pictures):
            content = picture if isinstance(picture, bytes) else png(picture)
            (self.incoming / folder / f"new-{at:03}.png").write_bytes(content)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def place(crowned, tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(crowned, root, symlinks=True)
    monkeypatch.setenv("STILLMARK_PROJECT", str(root))
    params = load(root)
    watched = Watched(params.project, "incoming", params.prepare, lambda: {"teach": "t"})
    return Place(root, Settings(), watched)


@pytest.fixture(scope="module")
def pictures():
    """Digits of the champion's three classes that its data does not hold, and others."""
    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)
    ours = [images[digits.target == label][90:] for label in range(3)]
    return ours, images[digits.target > 5]


def test_without_triggers_nothing_is_asked(place):
    found = place.look()
    assert (found.answers, found.reason, found.failures) == ((), None, [])
    assert "there are no triggers" in found.sentence


def test_all_are_asked_though_one_cannot_look(place):
    shutil.rmtree(place.root / "data")
    (place.home / "watch.json").write_text(
        watch.Memory(since=NOW - timedelta(days=1), looked=NOW).model_dump_json()
    )
    found = place.look(DATA, Drift(), CODE, NIGHTLY)
    assert [answer.failed for answer in found.answers] == [True, True, False, False]
    first, second = found.failures
    assert first.startswith("data: data/ is missing; run `dvc pull`, or put your data there")
    assert second.startswith("drift: incoming/ is missing; make it, and put rows that arrive there")
    assert found.reason.trigger == "cron"
    assert found.sentence.startswith("cron: '0 3 * * *' (UTC) was due at 2026-11-21 03:00")


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        ("promoted", False),
        ("rejected", False),
        ("unchanged", False),
        ("failed", False),
        ("killed", True),
        ("gave_way", True),
        ("running", True),
    ],
)
def test_a_reason_counts_once_unless_the_retraining_was_killed(place, outcome, again):
    """What is running without a lock's holder died, and nobody has said so yet."""
    place.retrained("unchanged", Reason(trigger="hand", sentence="first"), code="old")
    reason = place.ask(CODE).reason
    assert reason.trigger == "code"
    place.retrained(outcome, reason, code="old")
    found = place.ask(CODE)
    assert (found.reason is not None) is again
    assert found.reason == (reason if again else None)
    if not again:
        assert found.sentence.endswith(f"was about that: {outcome}")


def test_code_that_is_put_back_is_news(place):
    place.retrained("unchanged", Reason(trigger="hand", sentence="first"), code="old")
    reason = place.ask(CODE).reason
    place.retrained("promoted", reason)
    place.retrained("promoted", Reason(trigger="hand", sentence="other code"), code="older")
    assert place.ask(CODE).reason == reason
    place.retrained("failed", reason)
    assert place.ask(CODE).reason is None


def test_a_retraining_that_died_is_started_again_for_its_reason_but_not_for_ever(place):
    """The rows that woke it may lie in data/ by now, where no trigger looks for them."""
    reason = Reason(trigger="drift", sentence="other rows", figures={"p": 0.0}, about="arrived:x")
    plain = reason.model_copy(update={"figures": {}})  # as a deployment passes it on
    place.retrained("killed", reason)
    place.retrained("gave_way", plain)
    place.retrained("running", plain)
    found = place.look(CODE)
    assert found.reason == plain
    assert found.answers[0].trigger == "unfinished"
    assert found.answers[0].sentence.endswith("(drift) died before it had ended")
    place.retrained("killed", plain)
    found = place.look(CODE)
    assert found.reason is None
    (failure,) = found.failures
    assert "as did 2 before it; look why, then run `stillmark retrain`" in failure
    place.retrained("unchanged", Reason(trigger="hand", sentence="by hand"))
    assert place.look(CODE).failures == []


@pytest.mark.parametrize("trigger", ["hand", "backfill"])
def test_what_a_person_started_and_died_is_theirs_to_start_again(place, trigger):
    place.retrained("killed", Reason(trigger=trigger, sentence="x"))
    assert [answer.trigger for answer in place.look(CODE).answers] == ["code"]


def test_a_retraining_that_lives_is_waited_for_and_one_elsewhere_is_not_judged(place):
    reason = Reason(trigger="drift", sentence="other rows", about="arrived:x")
    run_id = place.retrained("running", reason).run_id
    client = Tracking(place.settings.tracking_uri, place.home).client
    client.set_tag(run_id, PROCESS_TAG, Process.mine().model_dump_json())
    assert "a retraining is about to begin or to end (process" in place.look(CODE).busy
    elsewhere = Process.mine().model_copy(update={"host": "elsewhere"})
    client.set_tag(run_id, PROCESS_TAG, elsewhere.model_dump_json())
    assert [answer.trigger for answer in place.look(CODE).answers] == ["code"]


def test_past_data_says_nothing_of_todays(place):
    place.retrained("unchanged", Reason(trigger="hand", sentence="first"))
    place.retrained("unchanged", Reason(trigger="backfill", sentence="past"), code="old")
    assert place.ask(CODE).reason is None


def test_while_another_run_goes_on_nobody_is_asked(place):
    note = place.home / "retrain.lock.json"
    Note.mine("retraining").write(note)
    found = place.look(DATA, CODE)
    assert found.answers == ()
    assert found.sentence.startswith("another run of the project is going on (process ")
    dead = Note.read(note)
    dead.model_copy(update={"process": dead.process.model_copy(update={"started": 1})}).write(note)
    assert len(place.look(CODE).answers) == 1


def test_moments_count_from_the_first_look_and_a_clock_that_goes_back_is_said(place):
    assert place.ask(NIGHTLY).reason is None
    later = NOW + timedelta(hours=20)
    assert place.ask(NIGHTLY, later).reason.about == "cron:2026-11-22T03:00:00+00:00"
    back = place.look(NIGHTLY, now=NOW - timedelta(days=2))
    assert back.reason is None
    assert back.note == "the clock went back by 68.0 hours since the last look"
    again = place.look(NIGHTLY, now=NOW - timedelta(days=1))
    assert (again.note, again.reason.about) == ("", "cron:2026-11-20T03:00:00+00:00")


def test_damaged_memory_is_as_none(place):
    (place.home / "watch.json").write_text("{")
    assert place.ask(NIGHTLY).reason is None
    assert watch.Memory.read(place.home / "watch.json", NOW + timedelta(days=1)).since == NOW


def test_rows_like_those_of_training_are_no_drift_and_others_are(place, pictures):
    known = np.load(place.root / "prepared" / "rows.npy")[:200, ..., 0]
    known[np.arange(200), 3, np.arange(200) % 8] ^= 1
    place.put(known)
    found = place.ask(Drift())
    assert found.reason is None
    assert "no drift in 3 tests on 200 arrived and " in found.sentence
    _, others = pictures
    place.put(others[:300])
    found = place.ask(Drift())
    assert found.reason.about.startswith("arrived:")
    assert found.reason.figures["incoming_rows"] >= 200


def test_an_answer_is_kept_until_rows_or_champion_change(place, pictures, monkeypatch):
    place.put(pictures[1][:100])
    found = place.ask(Drift())
    opened = []

    def refuse(*given):
        opened.append(given)
        raise DataError("opened")

    monkeypatch.setattr(Champion, "of", refuse)
    assert place.ask(Drift()) == found
    assert opened == []
    assert place.ask(Drift(alpha=0.02)).failed
    place.put(pictures[1][100:101], "6")
    assert place.ask(Drift()).sentence == "opened"


def test_rows_that_the_champion_knows_do_not_count_again(place, raw):
    shutil.copytree(raw, place.incoming)
    assert place.ask(Drift()).sentence == "0 new rows wait, 50 are compared"
    assert place.ask(Performance()).sentence == "0 labels arrived late, 50 count"


def test_a_row_that_cannot_be_read_is_named(place, pictures):
    place.put([*pictures[1][:80], b"\x89PNG and then nothing"])
    found = place.ask(Drift())
    assert found.reason is not None
    assert (
        "; cannot be read: incoming/unlabelled/new-080.png: not a readable image" in found.sentence
    )
    assert place.ask(Drift()) == found


def test_labels_that_came_late_show_a_champion_that_fell(place, pictures):
    ours, _ = pictures
    for label, images in enumerate(ours):
        place.put(images[:25], str(label))
    good = place.ask(Performance())
    assert good.reason is None
    assert "of 75 late labels right, recorded are 97.00% (at least 93.00%" in good.sentence
    for label in range(3):
        (place.incoming / str(label)).rename(place.incoming / f"was {label}")
    for label in range(3):
        (place.incoming / f"was {label}").rename(place.incoming / str((label + 1) % 3))
    found = place.ask(Performance()).reason
    assert found.figures["late_labels"] == 75
    assert found.figures["accuracy"] < 0.2
    assert found.about.startswith("arrived:")


def test_labels_that_came_into_the_data_count_too(place, plain_params):
    """Rows that were unlabelled when the champion learned, and are prepared with a label now."""
    for path in (place.root / "data" / "unlabelled").iterdir():
        path.rename(place.root / "data" / path.name[0] / path.name)
    prepare(place.root, parse(PrepareParams, plain_params["prepare"]))
    place.incoming.mkdir()
    assert "of 90 late labels right" in place.ask(Performance()).sentence


def test_a_table_whose_labels_come_later_needs_no_label_column(tmp_path):
    """See also tests/tasks/test_incoming.py."""
    schedule = parse(ScheduleParams, {"triggers": [{"name": "drift", "alpha": 0.05}]}, "schedule")
    assert schedule.triggers == (Drift(alpha=0.05),)
    assert schedule.incoming == "incoming"


@pytest.mark.parametrize("name", ["data", "data/new", "prepared", "/x", "../x", "."])
def test_rows_do_not_arrive_among_the_data_or_outside_of_the_project(name):
    with pytest.raises(ParamsError, match=r"schedule\.incoming' is .*a folder of its own"):
        parse(ScheduleParams, {"incoming": name}, "schedule")


def test_rows_are_taken_in_unless_one_cannot_be_read(place, pictures):
    place.put([*pictures[1][:3], b"no picture"])
    prepare = place.watched.prepare
    with pytest.raises(DataError, match=r"moved into data/; cannot be read: incoming/u"):
        take_in(place.settings, prepare, "incoming")
    (place.incoming / "unlabelled" / "new-003.png").unlink()
    assert take_in(place.settings, prepare, "incoming") == 3
    assert len(list((place.root / "data" / "unlabelled").rglob("new-*.png"))) == 3


def test_nothing_is_taken_into_an_import(place):
    place.put([b"x"])
    (place.root / "data.dvc").write_text("deps: [{path: /there}]\nouts: [{md5: x.dir, path: data}]")
    with pytest.raises(DataError, match="data/ is an import of /there"):
        take_in(place.settings, place.watched.prepare, "incoming")
