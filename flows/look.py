"""A look at the triggers as params.yaml has them, without Prefect and, mostly, without torch."""

import json
from collections.abc import Callable
from typing import Any

from tasks.atomic import replace_text
from tasks.errors import ParamsError
from tasks.journal import sections_of
from tasks.lineage import origin
from tasks.lineage.digests import digest_of_file, digest_of_value
from tasks.prepare import PrepareParams
from tasks.sections import parse, read_tree
from tasks.settings import PARAMS_FILE, Settings
from tasks.signals import Watched
from tasks.watch import Look, ScheduleParams, look

SECTIONS_FILE = "sections.json"


def look_now(settings: Settings) -> Look:
    """Asks every trigger of section `schedule` once.

    Raises:
        StillmarkError: params.yaml is wrong where it matters here, or a store does not answer.
    """
    tree = read_tree(settings.root / PARAMS_FILE)
    settings.writable_home()
    schedule = parse(ScheduleParams, tree.get("schedule") or {}, "schedule")
    for name in ("project", "prepare"):
        if name not in tree:
            raise ParamsError(f"params.yaml: '{name}' is missing")
    watched = Watched(
        project=str(tree["project"]),
        incoming=schedule.incoming,
        prepare=parse(PrepareParams, tree["prepare"], "prepare"),
        sections=_sections(settings),
    )
    return look(settings, watched, schedule.triggers)


def _sections(settings: Settings) -> Callable[[], dict[str, str]]:
    """Finds the digests of the sections; all methods are imported only where the file changed."""

    def find() -> dict[str, str]:
        file = digest_of_file(settings.root / PARAMS_FILE).sha256
        key = digest_of_value({"params": file, "code": origin.code().digest})
        path = settings.home / SECTIONS_FILE
        known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if known.get("key") == key:
            return known["sections"]
        from tasks.params import load  # noqa: PLC0415 - imports torch and every method

        found = sections_of(load(settings.root).plain())
        replace_text(path, json.dumps({"key": key, "sections": found}))
        return found

    return find
