"""The label budget: which labels training and validation may see, drawn by the rows' digests."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from tasks.errors import DataError
from tasks.sections import Section, hint

FEWEST_CLASSES = 2


class LabelBudget(Section):
    """How many labels are shown, and which.

    Attributes:
        labels_per_class: How many labelled rows of each class are shown, validation included; null
            shows all.
        validation_labels_per_class: How many of that budget come from the validation split, where
            it has that many; null takes all it has.
        draw: Which labels are shown; another number is another draw from the same rows.
        unseen_classes: Classes of which no label is ever shown, for zero-shot teachers.
    """

    labels_per_class: Annotated[int, Field(ge=1)] | None
    validation_labels_per_class: Annotated[int, Field(ge=0)] | None
    draw: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    unseen_classes: tuple[str, ...] = ()

    def redraw(self, **changes: object) -> "Redraw":
        """The same with some fields changed."""
        return Redraw.model_validate({**self.model_dump(), **changes})


class Redraw(LabelBudget):
    """Other labels of the same rows, for comparisons.

    Attributes:
        shuffled: Deals the shown training labels out to the wrong rows: a negative control.
    """

    shuffled: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One distinct row: its name (sha256 of its content), label, split and where it was found."""

    digest: str
    label: str | None
    split: str
    source: str
    shown: bool = False


def fraction(*parts: str) -> float:
    """A number in [0, 1) that follows from texts alone: the first 64 bits of their sha256."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:8]) / 2**64


def show_labels(rows: list[Row], budget: LabelBudget) -> list[Row]:
    """Chooses the labels that training and validation may see, within the budget.

    Raises:
        DataError: One class only, no test rows, an unknown unseen class, fewer than two classes
            beside the unseen ones, or a class with fewer labels than asked for.
    """
    by_class: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.label is not None:
            by_class[row.label][row.split].append(row)
    if len(by_class) < FEWEST_CLASSES:
        names = ", ".join(f"'{name}'" for name in by_class) or "none"
        raise DataError(
            f"the labelled rows hold {len(by_class)} class ({names}), expected 2 or more"
        )
    if not any(splits["test"] for splits in by_class.values()):
        raise DataError(
            "no labelled row fell into the test split; label more rows, or raise prepare.test_share"
        )
    for name in budget.unseen_classes:
        if name not in by_class:
            raise DataError(
                f"prepare.unseen_classes names '{name}', which no row carries"
                f"{hint(name, list(by_class))}"
            )
    seen = sorted(by_class.keys() - set(budget.unseen_classes))
    if len(seen) < FEWEST_CLASSES:
        left = "1 class" if seen else "0 classes"
        names = ", ".join(f"'{name}'" for name in seen) or "none"
        raise DataError(
            f"prepare.unseen_classes leaves {left} ({names}) with labels, expected 2 or more"
        )
    shown = {row.digest for name in seen for row in _shown(name, by_class[name], budget)}
    return [replace(row, shown=row.digest in shown) for row in rows]


def _shown(name: str, splits: dict[str, list[Row]], budget: LabelBudget) -> list[Row]:
    def drawn(split: str) -> list[Row]:
        return sorted(splits[split], key=lambda row: fraction("draw", str(budget.draw), row.digest))

    train, wanted = drawn("train"), budget.labels_per_class
    validation = drawn("validation")[: budget.validation_labels_per_class]
    if wanted is None:
        chosen = train
    else:
        validation = validation[: wanted - 1]
        chosen = train[: wanted - len(validation)]
        if len(chosen) + len(validation) < wanted:
            usable = len(train) + len(validation)
            raise DataError(
                f"class '{name}' has {usable} labels to show outside the test split, prepare."
                f"labels_per_class asks for {wanted}; label more, or lower it (null takes all)"
            )
    if not chosen:
        raise DataError(
            f"class '{name}' has no labelled training row; label some, or remove the class"
        )
    return chosen + validation
