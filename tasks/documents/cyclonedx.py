"""CycloneDX 1.6 ML-BOM: the model with its model card, its data, its ancestors, its packages.

ECMA-424. The library knows no model card and drops one on a round trip, so cards and data contents
are put into its JSON. The serial number follows from the record and the time is the run's end:
equal chains give equal bytes.

The SHA-256 of a model or of data is that over its files as the lineage record has it (docs/
lineage-record.md); every file of a model is a component of its own with the file's own SHA-256.
"""

# The library's class decorator hides every constructor from type checkers.
# pyright: reportCallIssue=false

import json
from collections.abc import Iterator
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tasks.documents import Chain, Link, Manifest, dotted
from tasks.refs import DataRef

FILE_NAME = "ml-bom.cdx.json"
PACKAGE, INTERPRETER = "stillmark", "python"
# What a chain learnt from, by the stage that first made its classifier.
APPROACHES = {
    "supervise": "supervised",
    "distill": "semi-supervised",
    "mutual": "semi-supervised",
}


def render(chain: Chain) -> bytes:
    """The bill of materials as JSON."""
    subject = _model(chain.subject)
    ancestors = [_model(link) for link in chain.links[:-1]]
    data = [_data(ref) for ref in chain.data]
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"{PACKAGE}:{chain.subject.digest}"),
        metadata=BomMetaData(component=subject, timestamp=chain.subject.made.ended),
        components=[*ancestors, *data, *_packages(chain)],
        dependencies=_dependencies(chain),
    )
    plain = json.loads(JsonV1Dot6(bom).output_as_string())
    _insert(plain, chain)
    return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()


def _insert(plain: dict[str, Any], chain: Chain) -> None:
    """Puts in what the library has no classes for."""
    plain["metadata"]["component"]["modelCard"] = _card(chain)
    told = {_data_ref(ref): _contents(chain, ref) for ref in chain.data}
    for component in plain["components"]:
        if component["bom-ref"] in told:
            component["data"] = [told[component["bom-ref"]]]


def _model(link: Link) -> Component:
    record = link.record
    facts = {
        "record": link.digest,
        "stage": record.stage,
        "role": record.role,
        "mlflow.run": link.made.run_id,
        "mlflow.model": str(link.model_id),
        "code.digest": record.code.digest,
        **({"code.commit": record.code.commit} if record.code.commit else {}),
        "code.clean": str(record.code.clean).lower(),
        **{f"parameter.{name}": value for name, value in dotted(record.parameters)},
    }
    return Component(
        name=link.name,
        version=str(link.version) if link.version else link.digest,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_model_ref(link.digest),
        hashes=[_sha256(record.content)],
        properties=_properties(facts),
        components=[
            Component(
                name=name,
                type=ComponentType.FILE,
                bom_ref=f"{_model_ref(link.digest)}/{name}",
                hashes=[_sha256(digest.sha256)],
                properties=_properties({"size_bytes": str(digest.size_bytes)}),
            )
            for name, digest in record.files.items()
        ],
    )


def _data(ref: DataRef) -> Component:
    facts = {"dvc.raw": ref.raw, "dvc.prepared": ref.prepared, "manifest": ref.manifest}
    return Component(
        name="prepared",
        version=ref.prepared,
        type=ComponentType.DATA,
        bom_ref=_data_ref(ref),
        hashes=[_sha256(ref.content)],
        properties=_properties(facts),
    )


def _packages(chain: Chain) -> Iterator[Component]:
    """Python and the packages that the records name, each version once."""
    found = {pair for link in chain.links for pair in _environment(link)}
    for name, version in sorted(found):
        is_python = name == INTERPRETER
        purl = PackageURL("generic" if is_python else "pypi", name=name, version=version)
        yield Component(
            name=name,
            version=version,
            type=ComponentType.PLATFORM if is_python else ComponentType.LIBRARY,
            bom_ref=_package_ref(name, version),
            purl=purl,
        )


def _environment(link: Link) -> list[tuple[str, str]]:
    packages = link.record.environment.get("packages", {})
    return [(str(name), str(version)) for name, version in packages.items()]


def _dependencies(chain: Chain) -> Iterator[Dependency]:
    """A model rests on its data, its parents, what trained it and what serves it."""
    makers: dict[str, set[str]] = {}
    for link in chain.links:
        needs = {_data_ref(link.record.data)}
        needs |= {_model_ref(parent.record) for parent in link.record.parents}
        packages = {name: _package_ref(name, version) for name, version in _environment(link)}
        if PACKAGE in packages:
            maker = packages.pop(PACKAGE)
            needs.add(maker)
            makers.setdefault(maker, set()).update(packages.values())
        if link is chain.subject:
            needs |= {packages[name] for name in chain.requirements if name in packages}
        yield _dependency(_model_ref(link.digest), needs)
    for maker, packages in makers.items():
        yield _dependency(maker, packages)


def _dependency(ref: str, needs: set[str]) -> Dependency:
    return Dependency(BomRef(ref), [Dependency(BomRef(need)) for need in sorted(needs)])


def _card(chain: Chain) -> dict[str, Any]:
    card: dict[str, Any] = {"modelParameters": _parameters(chain)}
    if metrics := list(_metrics(chain)):
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if limits := list(_limits(chain)):
        card["considerations"] = {"technicalLimitations": limits}
    return card


def _parameters(chain: Chain) -> dict[str, Any]:
    found: dict[str, Any] = {"datasets": [{"ref": _data_ref(ref)} for ref in chain.data]}
    stages = [link.record.stage for link in chain.links]
    if approach := next((APPROACHES[stage] for stage in stages if stage in APPROACHES), None):
        found["approach"] = {"type": approach}
    if chain.schema is not None:
        found["task"] = "classification"
        found["inputs"] = [{"format": str(chain.schema["modality"]["name"])}]
        found["outputs"] = [{"format": "label"}, {"format": "probabilities"}]
    if chain.network is not None:
        network = chain.network["network"]
        found["architectureFamily"] = str(network["name"])
        found["modelArchitecture"] = json.dumps(network, sort_keys=True)
    return found


def _metrics(chain: Chain) -> Iterator[dict[str, Any]]:
    for found, kind in ((chain.measured, "accuracy"), (chain.control, "accuracy of the control")):
        if found is not None:
            yield _interval(kind, "test", found.accuracy, found.low, found.high)
    for rows, attack in chain.attacks.items():
        kind, part = "membership inference, AUC", f"train, {rows}"
        yield _interval(kind, part, attack.auc, attack.low, attack.high)
    if chain.evaluation is not None and chain.measured is not None:
        yield _metric("accuracy of the most frequent class", chain.evaluation.majority_share)
        yield _metric("latency at batch 1, median, ms", chain.measured.latency_p50_ms)
        yield _metric("latency at batch 1, 95th percentile, ms", chain.measured.latency_p95_ms)
        yield _metric("size, bytes", chain.measured.size_bytes)
    for name, value in chain.subject.record.metrics.items():
        yield _metric(f"{chain.subject.record.stage}: {name}", value)


def _interval(kind: str, part: str, value: float, low: float, high: float) -> dict[str, Any]:
    interval = {"lowerBound": _number(low), "upperBound": _number(high)}
    return {**_metric(kind, value), "slice": part, "confidenceInterval": interval}


def _metric(kind: str, value: float) -> dict[str, str]:
    return {"type": kind, "value": _number(value)}


def _limits(chain: Chain) -> Iterator[str]:
    """What follows from records and figures, and nothing else."""
    if chain.schema is not None:
        classes = ", ".join(str(name) for name in chain.schema["classes"])
        yield f"It knows these classes, and gives every row one of them: {classes}."
    if chain.evaluation is not None:
        rows = chain.evaluation.rows
        yield f"Accuracies are shares of {rows} test rows, with 95% Wilson intervals."
        yield f"Latencies were measured on one host: {chain.evaluation.host}."
    unclean = sorted({link.name for link in chain.links if not link.record.code.clean})
    if unclean:
        yield f"Made by code that was not committed: {', '.join(unclean)}."


def _contents(chain: Chain, ref: DataRef) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "dataset", "name": "prepared"}
    manifest = chain.manifests[ref.content]
    if not isinstance(manifest, Manifest):
        return told | {"description": f"The row manifest is not at hand: {manifest}"}
    facts = {f"rows.{split}": str(count) for split, count in manifest.rows.items()}
    facts |= {f"labels_shown.{split}": str(count) for split, count in manifest.shown.items()}
    facts |= {f"column.{name}": kind for name, kind in manifest.columns.items()}
    named = [{"name": f"{PACKAGE}:{name}", "value": value} for name, value in facts.items()]
    return told | {"contents": {"properties": named}}


def _properties(facts: dict[str, str]) -> list[Property]:
    return [Property(name=f"{PACKAGE}:{name}", value=value) for name, value in facts.items()]


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _number(value: float) -> str:
    return json.dumps(value)


def _model_ref(digest: str) -> str:
    return f"model:{digest}"


def _data_ref(ref: DataRef) -> str:
    return f"data:{ref.content}"


def _package_ref(name: str, version: str) -> str:
    return f"package:{name}@{version}"
