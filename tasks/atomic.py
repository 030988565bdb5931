"""Files that are replaced as a whole."""

import tempfile
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a small file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, delete=False
    ) as stream:
        stream.write(text)
    Path(stream.name).replace(path)
