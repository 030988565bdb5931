"""Figures on CLINC150 (Larson et al. 2019): 150 intents, 15,000 texts to train, 4,500 to test.

    python -m tests.benchmarks.clinc150 --data clinc150.json --out …/clinc150.json

- ten_labels: params/clinc150.yaml as it is committed: 10 labels of each intent.
- all_labels: every label shown.
- labels_alone: every label shown, to a wider student that hears nothing of the teacher. Chosen on
  the data set's validation texts.
- zero_shot: 30 intents, others in each draw, are never labelled; every label of the rest.
"""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np

from tasks.estimators.linear_svc import LinearSvc
from tests.benchmarks.draws import ROOT, Recipe, Tree, Variant, committed, main, options

UNSEEN = 30


def write_data(source: Path, folder: Path) -> None:
    """One CSV file with the data set's own split; its validation texts are left out."""
    found = json.loads(source.read_text(encoding="utf-8"))
    with (folder / "clinc150.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label", "split"])
        for split in ("train", "test"):
            writer.writerows((text, label, split) for text, label in found[split])


def all_labels(tree: Tree, _draw: int) -> None:
    """Every label shown."""
    tree["prepare"] |= {"labels_per_class": None, "validation_labels_per_class": None}


def labels_alone(tree: Tree, draw: int) -> None:
    """Every label shown, and no teacher heard."""
    all_labels(tree, draw)
    for section in ("distill", "supervise"):
        tree[section]["network"] |= {"width": 96, "buckets": 6144}
        tree[section]["fit"] |= {"steps": 6000, "learning_rate": 3e-3}
    tree["distill"]["losses"] = [{"name": "hard_labels"}]


def zero_shot(names: list[str], tree: Tree, draw: int) -> None:
    """Thirty intents without any label."""
    all_labels(tree, draw)
    chosen = np.random.default_rng(draw).choice(names, UNSEEN, replace=False)
    tree["prepare"]["unseen_classes"] = sorted(chosen.tolist())
    tree["consult"] = [{"estimator": {"name": "class_names"}}]


if __name__ == "__main__":
    given = options(__doc__, data="clinc150.json, with the lists `train` and `test`")
    intents = sorted(
        {label for _, label in json.loads(given.data.read_text(encoding="utf-8"))["train"]}
    )
    variants = (
        Variant("ten_labels", committed),
        Variant("all_labels", all_labels),
        Variant("labels_alone", labels_alone),
        Variant("zero_shot", partial(zero_shot, intents)),
    )
    recipe = ROOT / "params" / "clinc150.yaml"
    svc = (LinearSvc(),)
    main(Recipe(recipe, partial(write_data, given.data), variants, draws=3, baselines=svc), given)
