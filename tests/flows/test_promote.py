"""Promotion by command, in this process: so one temporary Prefect server serves all tests."""

import json
import logging
import shutil
import sqlite3

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from flows.cli import main
from flows.promote import show_verdicts
from tasks.gates.budget import Budget
from tasks.params import load
from tasks.promote import Decision, PromoteParams, promote
from tasks.settings import Settings
from tasks.stage import Run
from tasks.succession import CHAMPION, Succession
from tasks.tracking import Tracking
from tasks.versioning import Versions
from tests.conftest import Bench, Project, toy_of

NAME = "digits.edge"
ANY = PromoteParams(gates=(Budget(size_kib=1000.0),), latency_calls=10)
FAIR, LAZY, GOOD = 1, 2, 3


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What a command sets for the rest of its process does not outlive a test."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])


@pytest.fixture(scope="module")
def contested(fresh, linear, tmp_path_factory):
    """Rows are prepared, nothing is trained; a fair champion, then a lazy and a good version."""
    root = tmp_path_factory.mktemp("contested") / "project"
    shutil.copytree(fresh.root, root, symlinks=True)
    Project(root).change("promote.gates", [{"name": "quality", "margin": 0.0, "alpha": 0.05}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLMARK_PROJECT", str(root))
        bench = bench_of(root, Versions(root, root / ".stillmark").prepare())
        toy = toy_of(linear)
        made = [toy.make(bench, quality) for quality in ("fair", "lazy", "good")]
        versions = [bench.tracking.register(NAME, ref, {}) for ref in made]
        promote.fn(bench.run, ANY, versions[0])
    return Project(root)


def bench_of(root, data):
    params = load(root)
    tracking = Tracking(f"sqlite:///{root / 'mlflow.db'}", root / ".stillmark")
    return Bench(root, Run(params.project, params.compute, data), params, tracking)


@pytest.fixture
def project(contested, tmp_path, inside):
    """A copy of it, on copies of its databases, that this process stands in."""
    root = tmp_path / "project"
    caches = shutil.ignore_patterns(".stillmark", "mlflow.db-*")
    shutil.copytree(contested.root, root, ignore=caches, symlinks=True)
    inside(root)
    return Project(root)


@pytest.fixture
def succession(project):
    return Succession.of(Settings())


@pytest.fixture
def says(project, capsys):
    """Runs a command that ends well; gives what it said."""

    def run(*words):
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(project, refused):
    return refused


@pytest.fixture
def asked(project, says):
    """The request that a good challenger filed, as approval is wanted."""
    project.change("promote.approval", True)
    return json.loads(says("promote", NAME, "--json"))["request"]


def champions(succession):
    """By the ledger, one after another; and by the alias."""
    entries = [entry.version for entry in succession.ledger.entries(NAME)]
    return entries, succession.tracking.alias(NAME, CHAMPION)


def artifacts(key):
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        newest = ArtifactSort.CREATED_DESC
        return [one.data for one in client.read_artifacts(artifact_filter=wanted, sort=newest)]


def test_a_dry_run_says_the_verdicts_and_changes_nothing(says, succession):
    *verdicts, decision = says("promote", NAME, "--dry-run").splitlines()
    assert [line.split()[:2] for line in verdicts] == [["pass", "quality"], ["pass", "mlflow"]]
    assert decision.startswith("dry run: digits.edge version 3 promoted: better than the champion")
    assert champions(succession) == ([FAIR], FAIR)


def test_a_rejected_version_is_a_normal_end(says, succession):
    first, *_, decision = says("promote", f"{NAME}:{LAZY}").splitlines()
    assert first.startswith("FAIL  quality      ")
    assert decision.startswith("digits.edge version 2 rejected: ")
    assert champions(succession) == ([FAIR], FAIR)


def test_a_better_version_is_promoted_and_leaves_its_verdicts_on_prefects_page(says, succession):
    found = json.loads(says("promote", NAME, "--json"))
    assert found["outcome"] == "promoted"
    assert (found["challenger"]["version"], found["champion"]["version"]) == (GOOD, FAIR)
    assert found["sequence"] == 2
    assert champions(succession) == ([FAIR, GOOD], GOOD)
    table = json.loads(artifacts("verdicts")[0])
    assert [row["gate"] for row in table] == [verdict["gate"] for verdict in found["verdicts"]]
    assert artifacts("version") == []  # a local store has no page to link to
    assert says("promote", f"{NAME}:{GOOD}") == (
        "digits.edge version 3 is the champion already: nothing to decide\n"
    )


def test_a_store_with_pages_is_linked_to(says, project, monkeypatch):
    says("promote", NAME)
    decision = Decision.model_validate_json(says("promote", NAME, "--dry-run", "--json"))
    monkeypatch.setenv("STILLMARK_MLFLOW_URI", "https://mlflow.example.org/")

    @flow(name="shown")
    def shown():
        show_verdicts(decision)

    shown()
    assert "(https://mlflow.example.org/#/models/digits.edge/versions/3)" in artifacts("version")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "digits.edg"], "no model 'digits.edg'; did you mean 'digits.edge'? (known"),
        (["promote", f"{NAME}:7"], "'digits.edge' has no version 7; versions: 3, 2, 1"),
        (["promote", f"{NAME}:x"], "'digits.edge:x' names no version; expected a number: digits.e"),
        (["promote", f"{NAME}:"], "'digits.edge:' names no version; expected a number: digits.ed"),
        (["promote", f"{NAME}:0"], "'digits.edge:0' names no version; expected a number: digits"),
        (["promote", f"{NAME}:-1"], "'digits.edge:-1' names no version; expected a number: digit"),
        (["promote", NAME, "--again", " "], "--again is empty; say why, it stands in the ledger"),
        (["rollback", "digits.edg", "--reason", "no"], "no model 'digits.edg'; did you mean"),
        (["rollback", NAME, "--reason", "no"], "'digits.edge' had no champion before version 1"),
        (["rollback", NAME, "--reason", "no", "--to", 7], "'digits.edge' has no version 7; vers"),
        (["rollback", NAME, "--reason", "no", "--to", 0], "'digits.edge' has no version 0; vers"),
        (["rollback", NAME, "--reason", "no", "--to", FAIR], "digits.edge version 1 is the champi"),
        (["rollback", NAME, "--reason", " "], "--reason is empty; say why, it stands in the ledg"),
        (["approve", "abcd-efgh", "--reason", "yes"], "there is no request abcd-efgh"),
        (["reject", "abcd-efgh", "--reason", "no"], "there is no request abcd-efgh"),
        (["approve", "abcd-efgh", "--reason", ""], "--reason is empty; say why, it stands in the"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(refused, succession, words, message):
    assert refused(*words).startswith(message)
    assert champions(succession) == ([FAIR], FAIR)
    assert succession.ledger.open_intents() == []


def test_a_command_without_its_reason_is_no_traceback(project, capsys):
    assert main(["rollback", NAME]) == 2
    text = capsys.readouterr().err
    assert "--reason" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_in_a_process_of_its_own_a_failing_flow_says_one_line(project):
    """Prefect, which traces every failure to the terminal, included."""
    done = project.stillmark("rollback", NAME, "--to", "7", "--reason", "no")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "stillmark: 'digits.edge' has no version 7; versions: 3, 2, 1\n"
    path = project.root / ".stillmark" / "prefect" / "prefect.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    found = connection.execute("SELECT name, state_type FROM flow_run").fetchall()
    connection.close()
    assert [state for _, state in found] == ["FAILED"]


def test_rolled_back_a_version_stays_out_until_somebody_says_why_not(says, succession):
    says("promote", NAME)
    said = says("rollback", NAME, "--reason", "it shouts [at/customers]")
    assert said == "digits.edge champion: version 1 (ledger row 3)\n"
    assert champions(succession) == ([FAIR, GOOD, FAIR], FAIR)
    assert artifacts("rollback")
    said = says("promote", NAME)
    assert "rejected: " in said
    assert "it shouts [at/customers]" in said
    assert "`stillmark promote digits.edge:3 --again REASON` judges it anew" in said
    says("promote", f"{NAME}:{GOOD}", "--again", "it was the loudspeaker")
    assert succession.head(NAME).reason == "it was the loudspeaker"
    assert champions(succession) == ([FAIR, GOOD, FAIR, GOOD], GOOD)


def test_a_rollback_may_name_a_version_that_never_was_champion(says, succession):
    said = says("rollback", NAME, "--to", LAZY, "--reason", "as good as any")
    assert said == "digits.edge champion: version 2 (ledger row 2)\n"
    assert champions(succession) == ([FAIR, LAZY], LAZY)
    assert succession.head(NAME).reason == "as good as any"


def test_nothing_is_promoted_over_an_alias_that_was_moved_by_hand(refused, says, succession):
    succession.tracking.client.set_registered_model_alias(NAME, CHAMPION, str(LAZY))
    assert "was moved by hand: it is at version 2" in refused("promote", NAME)
    says("rollback", NAME, "--to", FAIR, "--reason", "as it should be")
    assert succession.check(NAME) == []


def test_what_waits_for_approval_says_what_to_type(project, says, succession):
    project.change("promote.approval", True)
    said = says("promote", NAME)
    (request,) = succession.ledger.requests(NAME, "open")
    assert f"awaits approval: `stillmark approve {request.id} --reason …` promotes it" in said
    assert f"waiting: version 3, asked {request.asked[:19]}Z" in says("history", NAME)
    assert champions(succession) == ([FAIR], FAIR)


def test_an_approval_promotes_once(asked, says, refused, succession):
    said = says("approve", asked, "--reason", "looks right")
    assert said.startswith("digits.edge version 3: approved by ")
    assert champions(succession) == ([FAIR, GOOD], GOOD)
    assert succession.head(NAME).reason == "approved: looks right"
    assert "(looks right) and carried out: nothing is left" in refused(
        "approve", asked, "--reason", "again"
    )
    assert champions(succession) == ([FAIR, GOOD], GOOD)


def test_what_was_rejected_is_not_approved_later(asked, says, refused, succession):
    said = says("reject", asked, "--reason", "not on a Friday")
    assert said.startswith("digits.edge version 3: rejected by ")
    assert "(not on a Friday): nothing is left" in refused("approve", asked, "--reason", "please")
    assert champions(succession) == ([FAIR], FAIR)


def test_an_approval_is_stale_where_the_champion_changed_meanwhile(
    asked, says, refused, succession
):
    says("rollback", NAME, "--to", LAZY, "--reason", "meanwhile")
    line = refused("approve", asked, "--reason", "yes")
    assert line.startswith(f"request {asked} is stale: the champion changed since it was asked")
    assert champions(succession) == ([FAIR, LAZY], LAZY)
    assert succession.ledger.request(asked).state == "stale"
