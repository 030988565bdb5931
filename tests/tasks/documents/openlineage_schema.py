"""OpenLineage's published schema, as JSON Schema.

The client package holds no schema file, and nothing is fetched here. It holds classes that its
makers generate from the published files (https://openlineage.io/spec/2-0-2/OpenLineage.json and
https://openlineage.io/spec/facets/…, Apache-2.0); each class names its file. What is below turns
the installed classes back into a schema. Stricter than the published one: members that the classes
do not know are refused, and every facet has to be one of the standard's, under the standard's name.
"""

import enum
import importlib
import pkgutil
import types
import typing

import attr
from jsonschema import Draft202012Validator, FormatChecker
from openlineage.client import generated
from openlineage.client.generated import base

# Filled in by the client where they are not given, and required in what it writes.
FILLED = {"producer", "schemaURL", "_producer", "_schemaURL"}
FORMATS = {
    "eventTime": "date-time",
    "runId": "uuid",
    "url": "uri",
    **dict.fromkeys(FILLED, "uri"),
}
# Under which names the facets' files publish them.
FACETS = {
    "datasetType": "DatasetTypeDatasetFacet",
    "executionParameters": "ExecutionParametersRunFacet",
    "jobType": "JobTypeJobFacet",
    "processing_engine": "ProcessingEngineRunFacet",
    "schema": "SchemaDatasetFacet",
    "sourceCodeLocation": "SourceCodeLocationJobFacet",
    "version": "DatasetVersionDatasetFacet",
}
TAGS = {
    base.DatasetFacet: "TagsDatasetFacet",
    base.JobFacet: "TagsJobFacet",
    base.RunFacet: "TagsRunFacet",
}
PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number"}


def classes():
    """Every generated class by its name."""
    modules = [importlib.import_module(f"{generated.__name__}.base")]
    modules += [
        importlib.import_module(f"{generated.__name__}.{found.name}")
        for found in pkgutil.iter_modules(generated.__path__)
    ]
    found = {}
    for module in modules:
        for name, one in vars(module).items():
            if isinstance(one, type) and attr.has(one):
                found.setdefault(name, one)  # facets have classes of their own named Job and Run
    return found


def facets_of(kind, known):
    """One member for every facet of a kind."""
    names = FACETS | {"tags": TAGS.get(kind, "")}
    own = {
        name: refer(known[found])
        for name, found in names.items()
        if found in known and issubclass(known[found], kind)
    }
    return {"type": "object", "properties": own, "additionalProperties": False}


def refer(found):
    return {"$ref": f"#/$defs/{found.__name__}"}


def schema_of_type(annotation, known):
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        (one,) = [found for found in inner if found is not type(None)]
        return schema_of_type(one, known)
    if origin is list:
        return {"type": "array", "items": schema_of_type(inner[0], known)}
    if origin is dict:
        return facets_of(inner[1], known)
    if annotation in PLAIN:
        return {"type": PLAIN[annotation]}
    if issubclass(annotation, enum.Enum):
        return {"enum": [member.value for member in annotation]}
    return refer(annotation)


def schema_of_class(found, known):
    kinds = typing.get_type_hints(found, localns={"ClassVar": typing.ClassVar})
    members, required = {}, []
    for field in attr.fields(found):
        members[field.name] = schema_of_type(kinds[field.name], known)
        if field.name in FORMATS:
            members[field.name]["format"] = FORMATS[field.name]
        if field.default is attr.NOTHING or field.name in FILLED:
            required.append(field.name)
    for name in members.keys() & {"schemaURL", "_schemaURL"}:
        members[name] = {"const": found._get_schema()}
    return {
        "type": "object",
        "properties": members,
        "required": required,
        "additionalProperties": False,
    }


def validator():
    """Of one run event."""
    known = classes()
    wanted = {"RunEvent", "Run", "Job", "InputDataset", "OutputDataset", *FACETS.values()}
    wanted |= {*TAGS.values(), "ExecutionParameter", "EmissionPattern", "SchemaDatasetFacetFields"}
    wanted |= {"TagsDatasetFacetFields", "TagsJobFacetFields", "TagsRunFacetFields"}
    # No event here uses these, and the classes name them.
    wanted |= {"InputDatasetFacet", "OutputDatasetFacet"}
    schema = {
        "$ref": "#/$defs/RunEvent",
        "$defs": {name: schema_of_class(known[name], known) for name in sorted(wanted)},
    }
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FormatChecker())
