"""The digits figures in README.md: five label draws and seeds through the real command.

    python -m tests.benchmarks.digits --out tests/benchmarks/results/digits.json

- chain: params.yaml as it is committed, 100 labels.
- no_pretraining: the teacher starts from fresh weights.
- small_student: the pruned shape distilled from scratch with as many steps, and its own control.
- forty_labels: 4 labels of each class, none of them kept for validation.
"""

import shutil
from pathlib import Path

from tests.benchmarks.draws import ROOT, Recipe, Tree, Variant, committed, main, options


def no_pretraining(tree: Tree, _draw: int) -> None:
    """A teacher from scratch."""
    tree["teach"][0]["network"] = tree["pretrain"]["network"]
    tree["pretrain"] = None


def small_student(tree: Tree, _draw: int) -> None:
    """The shape that pruning arrives at, distilled from scratch with as many steps."""
    small = {"name": "convnet", "widths": [8, 16, 16]}
    tree["distill"]["network"] = tree["supervise"]["network"] = small
    tree["distill"]["fit"]["steps"] = tree["supervise"]["fit"]["steps"]
    tree["prune"] = None


def forty_labels(tree: Tree, _draw: int) -> None:
    """Four labels of each class."""
    tree["prepare"] |= {"labels_per_class": 4, "validation_labels_per_class": 0}


def write_data(folder: Path) -> None:
    """The sample in the repository (`dvc pull`)."""
    shutil.copytree(ROOT / "data", folder, dirs_exist_ok=True)


VARIANTS = (
    Variant("chain", committed),
    Variant("no_pretraining", no_pretraining),
    Variant("small_student", small_student),
    Variant("forty_labels", forty_labels),
)

if __name__ == "__main__":
    main(Recipe(ROOT / "params.yaml", write_data, VARIANTS, draws=5), options(__doc__))
