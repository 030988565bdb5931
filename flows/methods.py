"""Every method that params.yaml can ask for, read from the drawers themselves."""

import inspect
from typing import Any

from tasks.augmentations import AUGMENTATIONS
from tasks.combinations import COMBINATIONS
from tasks.drawers import Drawer
from tasks.errors import ParamsError
from tasks.estimators import ESTIMATORS
from tasks.exporters import EXPORTERS
from tasks.factorizers import FACTORIZERS
from tasks.gates import GATES
from tasks.losses import LOSSES
from tasks.modalities import MODALITIES
from tasks.networks import NETWORKS
from tasks.objectives import OBJECTIVES
from tasks.pruners import PRUNERS
from tasks.quantizers import QUANTIZERS
from tasks.sections import Section, hint
from tasks.teachers import TEACHERS
from tasks.triggers import TRIGGERS

ATTRIBUTES = "Attributes:"

DRAWERS: tuple[Drawer[Any], ...] = (
    MODALITIES,
    AUGMENTATIONS,
    NETWORKS,
    OBJECTIVES,
    TEACHERS,
    ESTIMATORS,
    LOSSES,
    COMBINATIONS,
    PRUNERS,
    FACTORIZERS,
    QUANTIZERS,
    EXPORTERS,
    GATES,
    TRIGGERS,
)


def listed() -> dict[str, dict[str, str]]:
    """One line on every method, by drawer and name."""
    return {
        drawer.noun: {name: _first_line(found) for name, found in drawer.methods.items()}
        for drawer in DRAWERS
    }


def described(name: str) -> str:
    """All that a method's docstring says.

    Args:
        name: A method's name, or `drawer.name` where two drawers have one of it.

    Raises:
        ParamsError: No drawer has it; names the nearest.
    """
    noun, _, short = name.rpartition(".")
    found = [
        drawer.methods[short]
        for drawer in DRAWERS
        if noun in {"", drawer.noun} and short in drawer.methods
    ]
    if not found:
        known = sorted({method for drawer in DRAWERS for method in drawer.methods})
        raise ParamsError(f"there is no method '{name}'{hint(short, known)}")
    return "\n\n".join(map(_told, found))


def _told(method: type[Section]) -> str:
    """A method's docstring, and the parameters that the classes it extends give it."""
    own, header, ours = inspect.cleandoc(method.__doc__ or "").partition(ATTRIBUTES)
    extended = (inspect.getdoc(base) or "" for base in method.__mro__[1:] if _is_ours(base))
    theirs = [doc.partition(ATTRIBUTES)[2].rstrip() for doc in extended if ATTRIBUTES in doc]
    lines = [part for part in (ours.rstrip(), *theirs) if part]
    return own.rstrip() + (f"\n\n{ATTRIBUTES}" + "".join(lines) if lines or header else "")


def _is_ours(base: type) -> bool:
    return issubclass(base, Section) and base is not Section


def _first_line(method: type[Section]) -> str:
    takes = getattr(method, "takes", None)
    line = inspect.cleandoc(method.__doc__ or "").partition("\n")[0]
    return f"{line} [{takes}]" if takes else line
