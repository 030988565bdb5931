"""DVC's cache or a remote, written by hand: independent of what reads it."""

import hashlib
import json


def keep(folder, content, suffix=""):
    """Writes bytes as DVC 3 does, under their md5; returns it."""
    name = hashlib.md5(content, usedforsecurity=False).hexdigest()
    path = folder / "files" / "md5" / name[:2] / f"{name[2:]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return f"{name}{suffix}"


def keep_all(folder, contents):
    """A data version: its files and their listing; returns its digest."""
    listing = [
        {"md5": keep(folder, content), "relpath": name} for name, content in contents.items()
    ]
    return keep(folder, json.dumps(listing).encode(), ".dir")
