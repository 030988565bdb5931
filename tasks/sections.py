"""Sections of params.yaml: frozen, strict, and with errors that name the cure."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tasks.errors import ParamsError


class Section(BaseModel):
    """A part of the parameter tree. Unknown names are refused, types are never coerced."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """The section as JSON-compatible data, as it enters stage keys and lineage records."""
        return self.model_dump(mode="json")


S = TypeVar("S", bound=Section)


def read_tree(path: Path) -> dict[str, Any]:
    """A YAML file of sections by name, not yet checked.

    Raises:
        ParamsError: The file is missing, or is not such a file.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; take it from the repository again") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{path.name} holds {type(tree).__name__}, expected sections by name")
    return tree


def parse(section: type[S], value: object, path: str = "") -> S:
    """Validates plain data against a section.

    Args:
        section: The section's class.
        value: What the YAML file holds at that place.
        path: Where in params.yaml the value stands, for messages.

    Raises:
        ParamsError: One line per mistake, each with the full path of the parameter.
    """
    try:
        # Strict JSON mode takes a list for a tuple, which strict Python mode refuses.
        return section.model_validate_json(json.dumps(value))
    except ValidationError as error:
        lines = [_explain(section, detail, path) for detail in error.errors()]
        raise ParamsError("\n".join(dict.fromkeys(lines))) from None
    except TypeError as error:
        raise ParamsError(f"params.yaml: {path or 'the file'} holds {error}") from None


def _explain(section: type[Section], detail: ErrorDetails, prefix: str) -> str:
    where = [str(part) for part in detail["loc"]]
    path = _dotted([*([prefix] if prefix else []), *where])
    kind = detail["type"]
    if kind == "extra_forbidden":
        return (
            f"params.yaml: unknown parameter '{path}'{hint(where[-1], _siblings(section, where))}"
        )
    if kind == "missing":
        return f"params.yaml: '{path}' is missing"
    if kind == "union_tag_invalid":
        context = detail.get("ctx", {})
        known = [name.strip(" '") for name in str(context.get("expected_tags", "")).split(",")]
        name = str(context.get("tag", ""))
        return f"params.yaml: '{path}' has the unknown name '{name}'{hint(name, known)}"
    if kind == "union_tag_not_found":
        return f"params.yaml: '{path}' needs a 'name' that says which method is meant"
    found = json.dumps(detail["input"], default=str)
    return f"params.yaml: '{path}' is {found[:80]}: {detail['msg']}"


def _dotted(parts: list[str]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if part.isdigit() else f".{part}" if text else part
    return text


def _siblings(section: type[Section], where: list[str]) -> list[str]:
    """The names that the mapping around a misspelt parameter does know."""
    current: type[Section] | None = section
    for part in where[:-1]:
        if current is None:
            return []
        if part in current.model_fields:
            current = _section_of(current.model_fields[part])
        elif not part.isdigit():
            # A tagged union puts the method's name into the path.
            current = next((m for m in _kinds(current) if tag_of(m) == part), current)
    return list(current.model_fields) if current is not None else []


def _kinds(section: type[Section]) -> list[type[Section]]:
    """Every class that extends a section, at any depth."""
    direct = section.__subclasses__()
    return direct + [deeper for found in direct for deeper in _kinds(found)]


def _section_of(field: Any) -> type[Section] | None:  # noqa: ANN401 - pydantic's FieldInfo or a type
    annotation = getattr(field, "annotation", field)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_of(inner) for inner in get_args(annotation) if inner is not Ellipsis)
    return next((inner for inner in found if inner is not None), None)


def tag_of(section: type[Section]) -> str | None:
    """The name by which params.yaml asks for a method, or None for a plain section."""
    field = section.model_fields.get("name")
    names = get_args(field.annotation) if field else ()
    return str(names[0]) if names else None


def hint(name: str, known: list[str]) -> str:
    """'; did you mean …?' and the known names, for the end of a message."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    return f"{guess} (known: {', '.join(sorted(known))})" if known else guess
