import pytest

from tasks.versioning import Versions


@pytest.fixture
def versions(untrained, monkeypatch):
    """Data versions of a fresh project; `dvc` runs its copy of the code."""
    for name, value in untrained.environment.items():
        monkeypatch.setenv(name, value)
    return Versions(untrained.root, untrained.root / ".stillmark")
