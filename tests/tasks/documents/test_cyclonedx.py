import hashlib
import json
from pathlib import Path
from uuid import UUID

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from tasks import documents
from tasks.lineage.digests import digest_of_files, digests_of_folder
from tasks.tracking import payload_of

VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)


@pytest.fixture(scope="module")
def text(chain):
    return documents.render("cyclonedx", chain).decode()


@pytest.fixture(scope="module")
def bom(text):
    return json.loads(text)


@pytest.fixture(scope="module")
def card(bom):
    return bom["metadata"]["component"]["modelCard"]


def properties(component):
    return {found["name"]: found["value"] for found in component.get("properties", [])}


def sha256(component):
    (found,) = component["hashes"]
    assert found["alg"] == "SHA-256"
    return found["content"]


def models(bom):
    found = [bom["metadata"]["component"], *bom["components"]]
    return {one["name"]: one for one in found if one["type"] == "machine-learning-model"}


def test_it_is_valid_by_the_published_schema(text):
    assert VALIDATOR.validate_str(text) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda bom: bom["metadata"]["component"].pop("name"),
        lambda bom: bom["metadata"]["component"]["modelCard"].update(made_up=1),
        lambda bom: bom["metadata"]["component"]["hashes"][0].update(content="no digest"),
        lambda bom: bom.update(serialNumber="no uuid"),
    ],
)
def test_the_validator_refuses_what_is_not(text, damage):
    bom = json.loads(text)
    damage(bom)
    assert VALIDATOR.validate_str(json.dumps(bom)) is not None


def test_serial_number_and_time_follow_from_the_chain(bom, chain, story):
    assert bom["specVersion"] == "1.6"
    UUID(bom["serialNumber"].removeprefix("urn:uuid:"))
    assert bom["metadata"]["timestamp"] == chain.subject.made.ended.isoformat()
    other = documents.gather(
        story.bench.tracking,
        story.versions,
        story.bench.tracking.version("digits.student", 1),
    )
    assert json.loads(documents.render("cyclonedx", other))["serialNumber"] != bom["serialNumber"]


def test_every_model_has_its_version_its_record_and_its_files(bom, story):
    found = models(bom)
    assert found.keys() == {"digits.teacher", "digits.student", "digits.edge"}
    for name, component in found.items():
        ref = story.models[name.removeprefix("digits.")]
        assert component["version"] == "1"
        assert properties(component)["stillmark:record"] == ref.record
        assert sha256(component) == ref.content
        folder = story.bench.files(ref)
        for file in component["components"]:
            path = folder / file["name"]
            assert sha256(file) == hashlib.sha256(path.read_bytes()).hexdigest()
            assert properties(file)["stillmark:size_bytes"] == str(path.stat().st_size)
        names = {file["name"] for file in component["components"]} | {"record.json"}
        # MLflow leaves a note of its own wherever a model was fetched.
        assert names == set(digests_of_folder(folder)) - {"registered_model_meta"}
        payload = payload_of(folder)
        assert sha256(component) == digest_of_files(digests_of_folder(payload))


def test_data_is_a_component_with_its_digests(bom, story):
    (data,) = [found for found in bom["components"] if found["type"] == "data"]
    ref = story.bench.run.data
    assert sha256(data) == ref.content
    assert properties(data) == {
        "stillmark:dvc.raw": ref.raw,
        "stillmark:dvc.prepared": ref.prepared,
        "stillmark:manifest": ref.manifest,
    }
    (contents,) = data["data"]
    told = properties(contents["contents"])
    report = json.loads((story.bench.root / "prepared" / "report.json").read_text())["rows"]
    assert told["stillmark:rows.train"] == str(report["train"])
    assert told["stillmark:labels_shown.train"] == str(report["train_shown"])


def test_packages_are_those_of_the_records(bom, chain):
    packages = chain.subject.record.environment["packages"]
    found = {one["name"]: one for one in bom["components"] if one["type"] == "library"}
    assert found.keys() == packages.keys() - {"python"}
    for name, component in found.items():
        purl = PackageURL.from_string(component["purl"])
        assert (purl.type, purl.name, purl.version) == ("pypi", name, packages[name])
    (python,) = [one for one in bom["components"] if one["type"] == "platform"]
    assert python["purl"] == f"pkg:generic/python@{packages['python']}"


def test_what_rests_on_what_is_the_chain(bom, story):
    refs = [bom["metadata"]["component"]["bom-ref"]]
    refs += [found["bom-ref"] for found in bom["components"]]
    assert len(set(refs)) == len(refs)
    needs = {found["ref"]: set(found.get("dependsOn", [])) for found in bom["dependencies"]}
    assert needs.keys() <= set(refs)
    assert set().union(*needs.values()) <= set(refs)
    model = {name: found["bom-ref"] for name, found in models(bom).items()}
    data = f"data:{story.bench.run.data.content}"
    student, teacher = model["digits.student"], model["digits.teacher"]
    assert {student, teacher, data} <= needs[model["digits.edge"]]
    assert needs[student] & {*model.values(), data} == {teacher, data}
    assert needs[teacher] & {*model.values(), data} == {data}
    served = {ref.partition("@")[0] for ref in needs[model["digits.edge"]]}
    assert served >= {"package:onnxruntime", "package:numpy", "package:mlflow"}


def test_the_card_has_figures_with_their_intervals_and_the_control(card):
    metrics = {found["type"]: found for found in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["accuracy"] == {
        "type": "accuracy",
        "value": "0.5",
        "slice": "test",
        "confidenceInterval": {"lowerBound": "0.375", "upperBound": "0.625"},
    }
    control = metrics["accuracy of the control"]
    assert control["value"] == "0.25"
    assert control["confidenceInterval"] == {"lowerBound": "0.125", "upperBound": "0.375"}
    assert metrics["size, bytes"]["value"] == "2048"
    assert metrics["membership inference, AUC"] == {
        "type": "membership inference, AUC",
        "value": "0.625",
        "slice": "train, labelled",
        "confidenceInterval": {"lowerBound": "0.5", "upperBound": "0.75"},
    }


def test_the_card_names_task_data_and_limits(card, story):
    parameters = card["modelParameters"]
    assert parameters["task"] == "classification"
    assert parameters["inputs"] == [{"format": "images"}]
    assert parameters["datasets"] == [{"ref": f"data:{story.bench.run.data.content}"}]
    limits = " ".join(card["considerations"]["technicalLimitations"])
    assert "these classes, and gives every row one of them: 0, 1, 2." in limits
    assert "40 test rows" in limits


def test_nothing_is_made_up_where_nothing_is_known(card, own):
    assert "approach" not in card["modelParameters"]  # no stage of this chain says how it learnt
    assert "modelArchitecture" not in card["modelParameters"]
    client = own.bench.tracking.client
    client.delete_model_version_tag("digits.edge", "1", "stillmark.evaluation")
    (own.bench.root / "prepared" / "manifest.parquet").unlink()
    text = documents.render("cyclonedx", own.gather()).decode()
    assert VALIDATOR.validate_str(text) is None
    bom = json.loads(text)
    metrics = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    assert [found["type"] for found in metrics["performanceMetrics"]] == ["guess: weight"]
    (data,) = [found for found in bom["components"] if found["type"] == "data"]
    assert "contents" not in data["data"][0]
    assert "not at hand" in data["data"][0]["description"]


def test_no_path_of_this_machine_is_in_it(text, story):
    assert str(story.bench.root) not in text
    assert str(Path.home()) not in text
