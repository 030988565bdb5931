"""Promotions that are killed, and promotions that race, in real processes.

One process imports everything, and forks for every attempt: each has connections of its own and
dies by a real SIGKILL, without seconds of imports.
"""

import json
import pickle

import pytest

from tasks.gates.budget import Budget
from tasks.promote import PromoteParams
from tasks.succession import CHAMPION

NAME = "digits.edge"
STEPS = (
    "Ledger.open",
    "Tracking.start",
    "Tracking.store_report",
    "Tracking.log_metrics",
    "Tracking.end",
    "Ledger.append",
    "Tracking.set_alias",
    "Ledger.close",
    "announce",
)
APPEND = "Ledger.append"
ANY = PromoteParams(gates=(Budget(size_kib=1000.0),), latency_calls=10)

SCRIPT = '''
import json, multiprocessing, os, pickle, signal, sys
from pathlib import Path
import mlflow.models, mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store, onnxruntime, pandas
import tasks.runtimes.images
from tasks import promote as module
from tasks.errors import ConflictError
from tasks.ledger import Ledger
from tasks.settings import Settings
from tasks.succession import CHAMPION, Succession
from tasks.tracking import Tracking

run, params, versions, attempts = pickle.loads(Path(sys.argv[1]).read_bytes())
PLACES = {"Ledger": Ledger, "Tracking": Tracking}


def die(step, when):
    owner, _, name = step.rpartition(".")
    place = PLACES.get(owner, module)
    whole = getattr(place, name)

    def deadly(*given, **named):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, deadly)


def forked(call):
    """Runs a call in a child; gives its exit status and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            said = json.dumps(call()).encode()
        except BaseException as error:
            said = json.dumps({"error": type(error).__name__, "text": str(error)}).encode()
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    return child, reading


def joined(started):
    child, reading = started
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else None


def state():
    succession = Succession.of(Settings())
    name = versions[0].name
    return {
        "entries": [entry.version for entry in succession.ledger.entries(name)],
        "alias": succession.tracking.alias(name, CHAMPION),
        "problems": succession.check(),
        "open": len(succession.ledger.open_intents()),
    }


def ask(version):
    decision = module.promote.fn(run, params, version)
    return {"outcome": decision.outcome, "version": version.version}


def killed(version, step, when):
    die(step, when)
    return ask(version)


def started_again(version):
    found = {"reconciled": Succession.of(Settings()).reconcile(), "then": state()}
    return {**found, "again": ask(version)["outcome"], "after": state()}


def together(version, barrier):
    opened = Ledger.open

    def waiting(*given, **named):
        intent = opened(*given, **named)
        barrier.wait(60)
        return intent

    Ledger.open = waiting
    return ask(version)


for attempt in attempts:
    if attempt[0] == "kill":
        _, step, when, at = attempt
        code, said = joined(forked(lambda: killed(versions[at], step, when)))
        _, after = joined(forked(lambda: started_again(versions[at])))
        print(json.dumps({"code": code, "said": said, **after}), flush=True)
    else:
        _, first, count = attempt
        barrier = multiprocessing.get_context("fork").Barrier(count)
        racing = [versions[at] for at in range(first, first + count)]
        children = [forked(lambda one=one: together(one, barrier)) for one in racing]
        said = [joined(child)[1] for child in children]
        _, found = joined(forked(state))
        print(json.dumps({"said": said, "after": found}), flush=True)
'''


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def project(request, bench, monkeypatch):
    """The bench, its ledger in either database."""
    if request.param == "postgresql":
        monkeypatch.setenv("STILLMARK_LEDGER_URI", request.getfixturevalue("postgres_url"))
    return bench


@pytest.fixture
def attempts(project, toy, python, tmp_path):
    """Runs attempts on fresh versions; gives what each printed."""

    def run(count, given):
        versions = [
            project.tracking.register(NAME, toy.make(project, "good", salt), {})
            for salt in range(count)
        ]
        job = tmp_path / "job"
        job.write_bytes(pickle.dumps((project.run, ANY, versions, given)))
        script = tmp_path / "attempts.py"
        script.write_text(SCRIPT)
        done = python(script, job, timeout=1800)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def kill(attempts, plan):
    """Kills a promotion of a fresh version at each place, starts it again, and looks."""
    found = attempts(len(plan), [("kill", *one, at) for at, one in enumerate(plan)])
    assert len(found) == len(plan)
    decided = [
        ("Ledger.append", "after"),
        *((s, "before") for s in STEPS[STEPS.index(APPEND) + 1 :]),
    ]
    decided += [(step, "after") for step, _ in decided]
    for version, (place, one) in enumerate(zip(plan, found, strict=True), start=1):
        appended = place in decided
        expected = list(range(1, version + appended))
        assert one["code"] == -9, (place, one)
        assert one["then"]["entries"] == expected, (place, one)
        assert one["then"]["alias"] == (expected[-1] if expected else None), (place, one)
        assert one["then"]["problems"] == [], (place, one)
        assert one["again"] == ("unchanged" if appended else "promoted"), (place, one)
        assert one["after"]["entries"] == list(range(1, version + 1)), (place, one)
        assert one["after"]["alias"] == version, (place, one)
        assert one["after"]["problems"] == [], (place, one)


def test_killed_between_any_two_steps_and_started_again_it_converges(attempts):
    kill(attempts, [*((step, "before") for step in STEPS), (STEPS[-1], "after")])


@pytest.mark.slow
def test_killed_after_any_step_and_started_again_it_converges(attempts):
    kill(attempts, [(step, "after") for step in STEPS])


def race(attempts, rounds, racers):
    found = attempts(rounds * racers, [("race", at * racers, racers) for at in range(rounds)])
    winners = []
    for one in found:
        won = [said["version"] for said in one["said"] if said.get("outcome") == "promoted"]
        lost = [said for said in one["said"] if "error" in said]
        assert len(won) == 1, one
        assert len(lost) == racers - 1
        winners += won
        for said in lost:
            assert said["error"] == "ConflictError"
            assert f"{NAME}@{CHAMPION} version {won[0]} was promoted" in said["text"]
        assert one["after"]["alias"] == won[0]
        assert one["after"]["entries"] == winners
        assert one["after"]["problems"] == []


def test_of_eight_at_once_exactly_one_wins(attempts):
    race(attempts, rounds=1, racers=8)


@pytest.mark.slow
def test_of_eight_at_once_exactly_one_wins_twenty_times(attempts):
    race(attempts, rounds=20, racers=8)


def test_registration_under_fire_makes_one_version(project, toy, python, tmp_path):
    ref = toy.make(project, "good")
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps(ref))
    script = tmp_path / "register.py"
    script.write_text(
        "import multiprocessing, pickle, sys\n"
        "import mlflow.store.model_registry.sqlalchemy_store\n"
        "import mlflow.store.tracking.sqlalchemy_store\n"
        "from pathlib import Path\n"
        "from tasks.settings import Settings\n"
        "from tasks.tracking import Tracking\n"
        "ref = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "context = multiprocessing.get_context('fork')\n"
        "barrier, numbers = context.Barrier(6), context.Queue()\n"
        "def register():\n"
        "    settings = Settings()\n"
        "    tracking = Tracking(settings.tracking_uri, settings.home)\n"
        "    barrier.wait(60)\n"
        f"    numbers.put(tracking.register({NAME!r}, ref, {{}}).version)\n"
        "children = [context.Process(target=register) for _ in range(6)]\n"
        "[child.start() for child in children]\n"
        "print(sorted(numbers.get(timeout=60) for _ in children))\n"
        "[child.join() for child in children]\n"
    )
    done = python(script, job, timeout=120)
    assert done.returncode == 0, done.stderr
    (version,) = project.tracking.versions(NAME)
    assert done.stdout.strip() == str([int(version.version)] * 6)
