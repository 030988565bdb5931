"""A small project whose data grows, and which trains in a hurry."""

import sys

from tests.conftest import draw_digits

MORE = 105  # pictures of each class; the small project starts with 90
HURRIED = {"pretrain": 5, "distill": 30, "supervise": 30}


def hurry(project):
    """As few steps as still make every model of the chain."""
    for section, steps in HURRIED.items():
        project.change(f"{section}.fit.steps", steps)
    project.change("teach.0.fit.steps", 20)
    project.change("prune.recovery.fit.steps", 10)


def grow(project):
    """Adds rows that were never there, labelled ones and others, and has DVC take them in."""
    draw_digits(project.root / "data", each=MORE, labelled=70)
    for path in (project.root / "data" / "unlabelled").glob("*-06?.png"):
        path.unlink()  # what had no label has one now
    cache = {"DVC_SITE_CACHE_DIR": str(project.root / ".stillmark" / "dvc")}
    done = project.command(
        sys.executable, "-m", "dvc", "add", "-q", "data", env=project.environment | cache
    )
    assert done.returncode == 0, done.stderr
