import json
import shutil
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pyarrow.parquet
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tasks.errors import ArtifactError, ConflictError, LedgerError, RegistryError, SetupError
from tasks.gates.budget import Budget
from tasks.gates.lineage import Lineage
from tasks.gates.quality import Quality
from tasks.judge import recheck
from tasks.ledger import Ledger
from tasks.lineage.digests import canonical, digest_of_files, digests_of_folder
from tasks.promote import PromoteParams, promote, rollback, settle
from tasks.rows import Rows
from tasks.sections import Section
from tasks.settings import Settings
from tasks.signing import SIGNATURE_FILE, check_signature
from tasks.stage import stage
from tasks.statistics import paired
from tasks.succession import CHAMPION, Succession

NAME = "digits.edge"


class Nothing(Section):
    pass


ONE_GATE = PromoteParams(gates=(Quality(),))
ANY = PromoteParams(gates=(Budget(size_kib=1000.0),))
ASKED = PromoteParams(gates=(Budget(size_kib=1000.0),), approval=True)


@pytest.fixture
def challenge(bench, toy):
    """Registers a toy model of a quality and lets it ask for the alias."""

    def ask(quality, params=ONE_GATE, salt=0, **more):
        version = bench.tracking.register(NAME, toy.make(bench, quality, salt), {})
        return promote.fn(bench.run, params, version, **more)

    return ask


@pytest.fixture
def succession(bench):
    return Succession.of(Settings())


@pytest.fixture
def kept(bench):
    """The folder that the newest promotion run stored."""

    def read():
        (run, *_) = bench.runs(stage="promote")
        return bench.tracking.report(run.info.run_id)

    return read


def champion(bench):
    return bench.tracking.alias(NAME, CHAMPION)


def tags(bench, version):
    return bench.tracking.client.get_model_version(NAME, str(version)).tags


def test_the_first_version_is_measured_against_the_floor(bench, challenge, succession):
    decision = challenge("good")
    assert decision.outcome == "promoted"
    assert decision.champion is None
    assert champion(bench) == 1
    assert "first version" in decision.sentence
    head = succession.head(NAME)
    assert (head.version, head.sequence, head.previous_version) == (1, 1, None)
    assert decision.sequence == 1


def test_a_first_version_that_knows_nothing_is_rejected(bench, challenge, succession):
    decision = challenge("lazy")
    assert decision.outcome == "rejected"
    assert champion(bench) is None
    assert succession.head(NAME) is None
    assert succession.ledger.open_intents() == []
    assert tags(bench, 1)["stillmark.decision"] == "rejected"
    assert challenge("good").outcome == "promoted"
    assert champion(bench) == 2


def test_a_first_version_worse_than_its_control_is_rejected(bench, toy):
    control, edge = toy.make(bench, "good"), toy.make(bench, "lazy")
    together = {"stillmark.evaluation": "the-same"}
    bench.tracking.register("digits.control", control, together)
    version = bench.tracking.register(NAME, edge, together)
    decision = promote.fn(bench.run, ONE_GATE, version)
    assert decision.outcome == "rejected"
    assert "control" in decision.sentence


def test_a_worse_challenger_leaves_the_alias_where_it_is(bench, challenge):
    challenge("good")
    decision = challenge("lazy")
    assert decision.outcome == "rejected"
    assert (decision.challenger.version, decision.champion.version) == (2, 1)
    assert champion(bench) == 1
    assert tags(bench, 2)["stillmark.decision"] == "rejected"
    assert tags(bench, 2)["stillmark.reason"] == decision.sentence
    assert tags(bench, 1)["stillmark.decision"] == "promoted"


def test_a_better_challenger_takes_over(bench, challenge, succession):
    challenge("fair", ANY)
    decision = challenge("good")
    assert decision.outcome == "promoted"
    assert decision.champion.version == 1
    assert decision.sentence.startswith("digits.edge version 2 promoted: better than the champion")
    assert champion(bench) == 2
    assert [entry.version for entry in succession.ledger.entries(NAME)] == [1, 2]
    assert succession.check() == []


def test_the_champion_itself_has_nothing_to_prove(bench, challenge, succession):
    challenge("good")
    runs = len(bench.runs())
    decision = challenge("good")
    assert decision.outcome == "unchanged"
    assert decision.verdicts == ()
    assert "champion already" in decision.sentence
    assert len(bench.runs()) == runs
    assert len(succession.ledger.entries(NAME)) == 1


def test_every_gate_has_to_let_it_pass(bench, challenge):
    strict = PromoteParams(gates=(Quality(), Quality(margin=0.99)))
    challenge("fair", ANY)
    decision = challenge("good", strict)
    assert [verdict.passed for verdict in decision.verdicts] == [True, False, True]
    assert decision.outcome == "rejected"
    assert "99.00%" in decision.sentence
    assert champion(bench) == 1


def test_two_gates_of_one_name_have_figures_of_their_own(bench, challenge):
    sure, surer = (Quality(test="non_inferiority", margin=0.5, alpha=at) for at in (0.05, 0.001))
    challenge("fair", ANY)
    decision = challenge("good", PromoteParams(gates=(sure, surer)))
    first, second = (verdict.figures["low"] for verdict in decision.verdicts[:2])
    assert first > second
    (run, *_) = bench.runs(stage="promote")
    metrics = run.data.metrics
    assert (metrics["quality.low"], metrics["quality-2.low"]) == (first, second)


def test_mlflow_validates_too(challenge):
    *_, verdict = challenge("lazy", ANY).verdicts
    assert verdict.gate == "mlflow"
    assert not verdict.passed
    assert verdict.sentence.startswith("mlflow.validate_evaluation_results: ")
    assert verdict.figures["accuracy_challenger"] < verdict.figures["floor"]


def test_the_evidence_says_row_by_row_why_and_can_be_judged_again(
    bench, challenge, kept, succession
):
    challenge("fair", ANY)
    decision = challenge("good")
    evidence = pyarrow.parquet.read_table(kept() / "predictions.parquet").to_pydict()
    rows = Rows(bench.root / "prepared")
    test = rows.open_test()
    assert evidence["row"] == test.names.tolist()
    assert evidence["label"] == [rows.classes[label] for label in test.labels]
    assert set(evidence["champion"]) == set(rows.classes[:2])
    labels = np.asarray(evidence["label"])
    found = paired(
        np.asarray(evidence["challenger"]) == labels, np.asarray(evidence["champion"]) == labels
    )
    quality = decision.verdicts[0]
    assert quality.figures["gain"] == pytest.approx(found.gain)
    (run, *_) = bench.runs(stage="promote")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["quality.p_value"] == pytest.approx(found.p_value)
    assert list(recheck(kept(), succession.head(NAME).evidence)) == []


@pytest.mark.parametrize("name", ["predictions.parquet", "facts.json", "judgement.json"])
def test_changed_evidence_is_named(challenge, kept, succession, tmp_path, name):
    challenge("good")
    folder = shutil.copytree(kept(), tmp_path / "evidence")
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    found = list(recheck(folder, succession.head(NAME).evidence))
    assert "the ledger says" in found[0]
    path.unlink()
    assert list(recheck(folder, succession.head(NAME).evidence)) == [
        f"{name} of the evidence is missing"
    ]


def test_a_verdict_that_was_written_by_hand_is_named(challenge, kept, tmp_path):
    challenge("lazy")
    folder = shutil.copytree(kept(), tmp_path / "evidence")
    tree = json.loads((folder / "judgement.json").read_text())
    tree["verdicts"][0]["passed"] = True
    (folder / "judgement.json").write_bytes(canonical(tree))
    (problem,) = recheck(folder, digest_of_files(digests_of_folder(folder)))
    assert problem.startswith("gate quality said: ")
    tree["verdicts"] = tree["verdicts"][1:]
    (folder / "judgement.json").write_bytes(canonical(tree))
    problem, *_ = recheck(folder, digest_of_files(digests_of_folder(folder)))
    assert problem == "gates judged: 1 and MLflow, verdicts kept: 1"


@pytest.mark.parametrize("whose", ["challenger", "champion"])
def test_damaged_files_are_never_judged(bench, toy, challenge, whose):
    first, second = ("fair", "good") if whose == "challenger" else ("good", "fair")
    challenge(first, ANY)
    asking = toy.make(bench, second)
    version = bench.tracking.register(NAME, asking, {})
    holder = bench.tracking.holder(NAME, CHAMPION)
    damaged = holder.model if whose == "champion" else asking
    (path,) = bench.files(damaged).rglob("model.onnx")
    path.write_bytes(path.read_bytes()[:-1])
    before = champion(bench)
    with pytest.raises(ArtifactError, match=r"model\.onnx has sha256"):
        promote.fn(bench.run, ONE_GATE, version)
    assert champion(bench) == before


def test_a_damaged_ancestor_fails_the_lineage_gate(bench, toy):
    parent = toy.make(bench, "fair")
    version = bench.tracking.register(NAME, toy.make(bench, "good", teacher=parent), {})
    params = PromoteParams(gates=(Lineage(clean_tree=False),))
    assert promote.fn(bench.run, params, version, dry_run=True).outcome == "promoted"
    (path,) = bench.files(parent).rglob("model.onnx")
    path.write_bytes(path.read_bytes()[:-1])
    decision = promote.fn(bench.run, params, version)
    assert decision.outcome == "rejected"
    assert "teacher" in decision.sentence


def test_a_dry_run_leaves_nothing_behind(bench, challenge, succession):
    decision = challenge("good", dry_run=True)
    assert decision.outcome == "promoted"
    assert decision.verdicts
    assert champion(bench) is None
    assert succession.ledger.entries() == []
    assert bench.runs(stage="promote") == []
    assert "stillmark.decision" not in tags(bench, 1)


def test_rolled_back_it_stays_out_until_somebody_says_so(bench, challenge, succession):
    challenge("fair", ANY)
    challenge("good")
    entry = rollback.fn(NAME, None, "it shouts at customers")
    assert (entry.action, entry.version, entry.previous_version) == ("rolled_back", 1, 2)
    assert champion(bench) == 1
    decision = challenge("good")
    assert decision.outcome == "rejected"
    assert "it shouts at customers" in decision.sentence
    assert "--again" in decision.sentence
    assert champion(bench) == 1
    assert challenge("good", again="it was the loudspeaker").outcome == "promoted"
    assert succession.head(NAME).reason == "it was the loudspeaker"
    assert [found.version for found in succession.ledger.entries(NAME)] == [1, 2, 1, 2]
    assert succession.check() == []


def test_one_rollback_after_another_walks_back(challenge):
    for salt in range(3):
        challenge("good", ANY, salt)
    assert rollback.fn(NAME, None, "no").version == 2
    assert rollback.fn(NAME, None, "no").version == 1
    with pytest.raises(RegistryError, match="no champion before version 1; name a version"):
        rollback.fn(NAME, None, "no")


def test_what_cannot_be_rolled_back_is_said(bench, challenge):
    with pytest.raises(RegistryError, match="never had a champion"):
        rollback.fn(NAME, None, "why")
    challenge("good")
    with pytest.raises(RegistryError, match="version 1 is the champion already"):
        rollback.fn(NAME, 1, "why")
    with pytest.raises(RegistryError, match="no version 7; versions: 1"):
        rollback.fn(NAME, 7, "why")
    assert champion(bench) == 1


def test_nothing_rolls_back_to_damaged_files(bench, challenge):
    challenge("good", ANY, 1)
    challenge("good", ANY, 2)
    (path,) = bench.files(bench.tracking.version(NAME, 1).model).rglob("model.onnx")
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="sha256"):
        rollback.fn(NAME, 1, "why")
    assert champion(bench) == 2


@pytest.mark.parametrize("there", [True, False])
def test_an_alias_moved_by_hand_is_found_and_nothing_promotes_over_it(
    bench, challenge, succession, inbox, there
):
    challenge("good", ANY, 1)
    challenge("good", ANY, 2)
    if there:
        bench.tracking.client.set_registered_model_alias(NAME, CHAMPION, "1")
    else:
        bench.tracking.client.delete_registered_model_alias(NAME, CHAMPION)
    (found,) = succession.check(NAME)
    assert "was moved by hand" in found
    assert f"at {'version 1' if there else 'no version'}, the ledger says 2 (row 2)" in found
    with pytest.raises(RegistryError, match="moved by hand"):
        challenge("good", ANY, 3)
    assert inbox.news[-1]["what"] == "out_of_band"
    rollback.fn(NAME, 1 if there else 2, "as it should be")
    assert succession.check(NAME) == []
    assert champion(bench) == (1 if there else 2)


def test_a_ledger_row_that_is_gone_is_witnessed_by_the_registry(bench, challenge, succession):
    challenge("good", ANY, 1)
    challenge("good", ANY, 2)
    bench.tracking.client.set_registered_model_alias(NAME, CHAMPION, "1")
    with sqlite3.connect(bench.root / "ledger.db") as connection:
        connection.execute("DROP TRIGGER stillmark_no_delete")
        connection.execute("DELETE FROM stillmark_ledger WHERE sequence = 2")
    assert any("2" in found and "gone" in found for found in succession.check(NAME))


def test_approval_promotes_what_was_asked_about(bench, challenge, succession):
    decision = challenge("good", ASKED)
    assert decision.outcome == "awaiting"
    assert f"stillmark approve {decision.request}" in decision.sentence
    assert champion(bench) is None
    assert tags(bench, 1)["stillmark.decision"] == "awaiting"
    settled = settle.fn(decision.request, "looks right", approved=True)
    assert settled.state == "approved"
    assert champion(bench) == 1
    head = succession.head(NAME)
    assert head.reason == "approved: looks right"
    assert list(recheck(bench.tracking.report(head.evidence_run), head.evidence)) == []
    with pytest.raises(ConflictError, match=r"approved by .* and carried out"):
        settle.fn(decision.request, "again", approved=True)


def test_a_rejection_is_final(bench, challenge):
    request = challenge("good", ASKED).request
    assert settle.fn(request, "not on a Friday", approved=False).state == "rejected"
    with pytest.raises(ConflictError, match="not on a Friday"):
        settle.fn(request, "please", approved=True)
    assert champion(bench) is None


def test_an_approval_is_stale_when_the_champion_changed(bench, challenge):
    request = challenge("good", ASKED, 1).request
    challenge("good", ANY, 2)
    with pytest.raises(ConflictError, match="stale: the champion changed"):
        settle.fn(request, "yes", approved=True)
    assert champion(bench) == 2


def test_an_approval_is_stale_when_the_challengers_files_changed(bench, challenge):
    request = challenge("good", ASKED).request
    (path,) = bench.files(bench.tracking.version(NAME, 1).model).rglob("model.onnx")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConflictError, match=r"stale: .* has sha256"):
        settle.fn(request, "yes", approved=True)
    assert champion(bench) is None


def test_an_approval_that_was_cut_off_may_be_given_again(bench, challenge, monkeypatch):
    request = challenge("good", ASKED).request
    with monkeypatch.context() as patch:
        patch.setattr(Succession, "install", lambda *_given, **_named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            settle.fn(request, "yes", approved=True)
    assert champion(bench) is None
    assert settle.fn(request, "yes", approved=True).state == "approved"
    assert champion(bench) == 1


def test_what_is_no_classifier_cannot_ask(bench):
    def weigh(work, _params):
        (work.folder / "weights.txt").write_text("1")
        return {}

    ref = stage("encoder")(weigh)._run(bench.run, Nothing())
    version = bench.tracking.register("digits.encoder", ref, {})
    with pytest.raises(RegistryError, match=r"digits.encoder version 1 holds no model.onnx"):
        promote.fn(bench.run, ANY, version)
    assert bench.tracking.alias("digits.encoder", CHAMPION) is None


def test_an_unknown_request_is_said():
    with pytest.raises(LedgerError, match="no request abcd-efgh"):
        settle.fn("abcd-efgh", "yes", approved=True)


def test_a_locked_ledger_is_one_line_and_safe_to_run_again(bench, challenge):
    challenge("good", ANY, 1)
    lock = sqlite3.connect(bench.root / "ledger.db")
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerError) as caught:
        Ledger(Settings().ledger_address, patience=0.2)
    assert "\n" not in str(caught.value)
    lock.rollback()
    lock.close()
    assert challenge("good", ANY, 2).outcome == "promoted"


class _Inbox(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.news.append(json.loads(body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def inbox(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), _Inbox)
    server.news, server.answers = [], []
    monkeypatch.setenv("STILLMARK_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_hears_of_everything(challenge, inbox):
    inbox.answers += [503]  # asked again
    challenge("fair", ANY)
    challenge("good")
    challenge("lazy", salt=3)
    rollback.fn(NAME, None, "no")
    kinds = [news["what"] for news in inbox.news]
    assert kinds == ["promoted", "promoted", "promoted", "rejected", "rolled_back"]
    assert inbox.news[-1]["sentence"] == "digits.edge rolled back to version 1: no"
    assert inbox.news[-1]["version"] == 1


def test_a_webhook_that_does_not_answer_stops_no_promotion(bench, challenge, monkeypatch, caplog):
    monkeypatch.setenv("STILLMARK_WEBHOOK", "http://user:secret@127.0.0.1:9/hook")
    monkeypatch.setattr("tasks.notify.FIRST_WAIT_SECONDS", 0.0)
    assert challenge("good").outcome == "promoted"
    assert champion(bench) == 1
    assert "the webhook was not told" in caplog.text
    assert "secret" not in caplog.text


def test_entries_name_who_and_when(challenge, succession):
    challenge("good")
    entry = succession.head(NAME)
    assert "@" in entry.actor
    assert entry.time.endswith("Z")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A private key that promotions sign with, and its public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    form, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(form, serialization.PrivateFormat.PKCS8, plain))
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(form, kind))
    monkeypatch.setenv("STILLMARK_SIGNING_KEY", str(private))
    return private, public


def test_what_is_promoted_is_signed_where_there_is_a_key(bench, challenge, keys):
    assert challenge("fair", ANY).outcome == "promoted"
    challenge("lazy")
    first, second = (bench.tracking.version(NAME, number) for number in (1, 2))
    signature = bench.tracking.attached(first.model.run_id, SIGNATURE_FILE)
    folder = bench.tracking.fetch(first.model).folder
    check_signature(folder, signature, keys[1])
    assert bench.tracking.attached(second.model.run_id, SIGNATURE_FILE) is None  # it was rejected


def test_a_key_of_no_use_promotes_nothing(bench, challenge, keys):
    keys[0].write_text("no key")
    with pytest.raises(SetupError, match="cannot be used as a private key"):
        challenge("good")
    assert champion(bench) is None
