import copy
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import UUID

import pyarrow.parquet
import pytest

from tasks import documents
from tasks.documents.openlineage import send
from tasks.errors import SetupError
from tests.tasks.documents.openlineage_schema import validator


@pytest.fixture(scope="module")
def told(chain):
    """The events of the file."""
    return [json.loads(line) for line in documents.render("openlineage", chain).splitlines()]


@pytest.fixture(scope="module")
def schema():
    return validator()


def of(told, run_id, kind="COMPLETE"):
    (found,) = [
        event
        for event in told
        if event["eventType"] == kind and event["run"]["runId"] == str(UUID(run_id))
    ]
    return found


def named(datasets):
    return {found["name"]: found for found in datasets}


def tags(facets):
    return {tag["key"]: tag["value"] for tag in facets["tags"]["tags"]}


def test_every_event_is_as_the_published_schema_has_it(told, schema):
    for event in told:
        schema.validate(event)


@pytest.mark.parametrize(
    "damage",
    [
        lambda event: event.pop("eventTime"),
        lambda event: event["run"].update(runId="no uuid"),
        lambda event: event["job"].pop("name"),
        lambda event: event.update(eventTime="yesterday"),
        lambda event: event.update(producer="no uri"),
        lambda event: event["inputs"][0]["facets"]["schema"]["fields"][0].pop("name"),
        lambda event: event["inputs"][0]["facets"]["version"].update(datasetVersion=1),
        lambda event: event["job"]["facets"]["jobType"].pop("_producer"),
        lambda event: event["run"]["facets"].update(made_up={}),
    ],
)
def test_the_schema_refuses_what_is_none(told, schema, damage):
    event = copy.deepcopy(told[0])
    damage(event)
    assert not schema.is_valid(event)


def test_every_run_starts_once_and_completes_once_at_mlflows_times(story, told):
    refs = [story.models[role] for role in ("teacher", "student", "edge")] + [story.report]
    assert len(told) == 2 * len(refs)
    for ref in refs:
        info = story.bench.tracking.client.get_run(ref.run_id).info
        for kind, milliseconds in (("START", info.start_time), ("COMPLETE", info.end_time)):
            event = of(told, ref.run_id, kind)
            moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
            assert datetime.fromisoformat(event["eventTime"]) == moment
            assert event["job"]["name"] == ref.stage
            assert event["job"]["namespace"] == "stillmark.digits"
            assert bool(event.get("outputs")) == (kind == "COMPLETE")
    times = [event["eventTime"] for event in told]
    assert times == sorted(times)


def test_inputs_and_outputs_join_the_stages_by_their_versions(story, told):
    edge = of(told, story.version.model.run_id)
    inputs = named(edge["inputs"])
    assert inputs.keys() == {"prepared", "digits.student", "digits.teacher"}
    (output,) = edge["outputs"]
    assert output["name"] == "digits.edge"
    assert output["facets"]["version"]["datasetVersion"] == story.version.model.record
    for role in ("student", "teacher"):
        ref = story.models[role]
        (made,) = of(told, ref.run_id)["outputs"]
        assert made["facets"] == inputs[f"digits.{role}"]["facets"]
        assert made["facets"]["version"]["datasetVersion"] == ref.record
        assert tags(made["facets"])["mlflow.model"] == ref.model_id


def test_the_report_reads_models_of_and_beside_the_chain(story, told):
    inputs = named(of(told, story.report.run_id)["inputs"])
    control = inputs["digits.control"]
    assert control["facets"]["version"]["datasetVersion"] == story.models["control"].record
    assert inputs.keys() >= {"digits.teacher", "digits.student", "digits.edge", "prepared"}


def test_data_has_its_digests_and_its_columns(story, told):
    data = story.bench.run.data
    schema = pyarrow.parquet.read_schema(story.bench.root / "prepared" / "manifest.parquet")
    for event in told:
        facets = named(event["inputs"])["prepared"]["facets"]
        assert facets["version"]["datasetVersion"] == data.content
        assert tags(facets) == {
            "raw": data.raw,
            "prepared": data.prepared,
            "manifest": data.manifest,
        }
        columns = [(found["name"], found["type"]) for found in facets["schema"]["fields"]]
        assert columns == [(field.name, str(field.type)) for field in schema]


def test_no_columns_are_made_up_where_the_manifest_is_not_at_hand(own):
    (own.bench.root / "prepared" / "manifest.parquet").unlink()
    lines = documents.render("openlineage", own.gather()).splitlines()
    for line in lines:
        assert "schema" not in named(json.loads(line)["inputs"])["prepared"]["facets"]


def test_parameters_code_and_engine_are_told(chain, told):
    edge = of(told, chain.subject.made.run_id, "START")
    parameters = edge["run"]["facets"]["executionParameters"]["parameters"]
    assert {found["key"]: found["value"] for found in parameters} == {
        "quality": "fair",
        "salt": "3",
    }
    code = chain.subject.record.code
    assert tags(edge["job"]["facets"]) == {
        "code.digest": code.digest,
        "code.clean": str(code.clean).lower(),
    }
    place = edge["job"]["facets"].get("sourceCodeLocation")
    assert (place or {}).get("version") == code.commit
    engine = edge["run"]["facets"]["processing_engine"]
    assert engine["version"] == chain.subject.record.environment["packages"]["stillmark"]


@pytest.fixture
def receiver():
    """An address that keeps what is posted, and answers with `status`."""
    kept = []

    class Handler(BaseHTTPRequestHandler):
        status = 200

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            self.send_response(Handler.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            """Keeps the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, kept, Handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def address(receiver, monkeypatch):
    for name in ("OPENLINEAGE_ENDPOINT", "OPENLINEAGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    place = f"http://user:secret@127.0.0.1:{receiver[0].server_port}"
    monkeypatch.setenv("OPENLINEAGE_URL", place)
    return place


def test_the_same_events_are_posted_to_the_address_of_the_environment(
    chain, told, receiver, address, monkeypatch
):
    monkeypatch.setenv("OPENLINEAGE_URL", address.replace("user:secret@", ""))
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "key")
    assert send(chain) == len(told)
    assert [event for _, _, event in receiver[1]] == told
    assert {(path, key) for path, key, _ in receiver[1]} == {("/api/v1/lineage", "Bearer key")}


def test_an_address_that_refuses_is_named_without_its_password(chain, receiver, address):
    receiver[2].status = 403
    with pytest.raises(SetupError, match=r"127\.0\.0\.1 .*HTTP status 403") as caught:
        send(chain)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_without_an_address_one_line_says_which_variable_to_set(chain, monkeypatch):
    monkeypatch.delenv("OPENLINEAGE_URL", raising=False)
    with pytest.raises(SetupError, match="OPENLINEAGE_URL is not set"):
        send(chain)
