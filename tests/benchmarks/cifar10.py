"""The CIFAR-10 (JPEG) figures in README.md, through the real command. Hours on two cores.

    python -m tests.benchmarks.cifar10 --data cifar10-images.zip --jobs 1 --projects FOLDER \\
        --out tests/benchmarks/results/cifar10.json

- all_labels: params/cifar10.yaml as it is committed.

The control beside the edge model is the same network with as many steps on the labels alone. The
test split is opened once, by the run itself. A run that was killed goes on where its project is
kept (`--projects`).
"""

import shutil
from functools import partial
from pathlib import Path

from tests.benchmarks.draws import ROOT, Recipe, Variant, committed, main, options


def write_data(source: Path, folder: Path) -> None:
    """The archive as it is: train/<class>/*.jpg and test/<class>/*.jpg."""
    shutil.copy(source, folder / "cifar10-images.zip")


if __name__ == "__main__":
    given = options(__doc__, data="a zip of train/<class>/*.jpg and test/<class>/*.jpg")
    recipe = ROOT / "params" / "cifar10.yaml"
    variants = (Variant("all_labels", committed),)
    main(Recipe(recipe, partial(write_data, given.data), variants, draws=1), given)
