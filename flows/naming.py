"""How people name a version: MODEL, MODEL@ALIAS or MODEL:VERSION."""

from tasks.errors import RegistryError
from tasks.refs import VersionRef
from tasks.sections import hint
from tasks.succession import CHAMPION
from tasks.tracking import Tracking


def version_named(tracking: Tracking, text: str) -> VersionRef:
    """The version that MODEL (its champion), MODEL@ALIAS or MODEL:VERSION names.

    Raises:
        RegistryError: There is no such model, alias or version; says which there are.
    """
    name, at, alias = text.partition("@")
    name, colon, number = name.partition(":")
    refuse_unknown(tracking, name)
    if colon:
        return _numbered(tracking, name, number)
    found = tracking.holder(name, alias if at else CHAMPION)
    if found is None:
        raise RegistryError(
            f"'{name}' has no alias '{alias if at else CHAMPION}'; name a version: {name}:1"
        )
    return found


def refuse_unknown(tracking: Tracking, name: str) -> None:
    """Lets registered names pass.

    Raises:
        RegistryError: There is no such model; says which there are.
    """
    known = tracking.registered()
    if name not in known:
        raise RegistryError(
            f"no model '{name}'{hint(name, known) or '; run `stillmark retrain` first'}"
        )


def _numbered(tracking: Tracking, name: str, number: str) -> VersionRef:
    numbers = [str(found.version) for found in tracking.versions(name)]
    if number not in numbers:
        raise RegistryError(f"'{name}' has no version '{number}'{hint(number, numbers)}")
    return tracking.version(name, int(number))
