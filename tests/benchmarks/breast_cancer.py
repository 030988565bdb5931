"""The figures on a table in README.md: five label draws and seeds through the real command.

    python -m tests.benchmarks.breast_cancer --out tests/benchmarks/results/breast_cancer.json

- tenth: params/breast_cancer.yaml as it is committed, a tenth of the training labels.
- boosting_alone: gradient boosting is the only teacher.

Gradient boosting and logistic regression on the same labels stand beside them.
"""

from pathlib import Path

import pandas
from sklearn.datasets import load_breast_cancer

from tasks.estimators.gradient_boosting import GradientBoosting
from tasks.estimators.logistic_regression import LogisticRegression
from tests.benchmarks.draws import ROOT, Recipe, Tree, Variant, committed, main, options


def boosting_alone(tree: Tree, _draw: int) -> None:
    """One teacher."""
    tree["consult"] = [{"estimator": {"name": "gradient_boosting"}}]


def write_data(folder: Path) -> None:
    """One CSV file with scikit-learn's copy of the data."""
    numbers, labels = load_breast_cancer(return_X_y=True)
    frame = pandas.DataFrame(numbers, columns=[f"column_{at}" for at in range(numbers.shape[1])])
    names = ["malignant" if label == 0 else "benign" for label in labels]
    frame.assign(label=names).to_csv(folder / "breast_cancer.csv", index=False)


VARIANTS = (Variant("tenth", committed), Variant("boosting_alone", boosting_alone))
BASELINES = (GradientBoosting(), LogisticRegression())

if __name__ == "__main__":
    recipe = ROOT / "params" / "breast_cancer.yaml"
    main(Recipe(recipe, write_data, VARIANTS, draws=5, baselines=BASELINES), options(__doc__))
