"""Quality of the answers, paired on the same test rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict
from tasks.statistics import CONFIDENCE, paired, share, sums_again

Sums = NDArray[np.float32]


def balanced_accuracy(sums: Sums) -> NDArray[np.float64]:
    """Mean over classes of the share of a class's rows that are named rightly.

    Args:
        sums: (…, 3, classes): rows of each class, those of them named so, all rows named so.
            A class without rows is left out.
    """
    support, hits, _ = np.moveaxis(sums.astype(np.float64), -2, 0)
    return _mean_where(support > 0, hits / np.maximum(support, 1))


def macro_f1(sums: Sums) -> NDArray[np.float64]:
    """Mean over classes of F1, 2 · hits / (rows + named).

    Args:
        sums: As `balanced_accuracy` takes them.
    """
    support, hits, named = np.moveaxis(sums.astype(np.float64), -2, 0)
    return _mean_where(support > 0, 2 * hits / np.maximum(support + named, 1))


def _mean_where(counts: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(counts, values, 0.0).sum(axis=-1) / counts.sum(axis=-1)


METRICS: dict[str, Callable[[Sums], NDArray[np.float64]]] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


@dataclass(frozen=True)
class Resampled:
    """A metric of several predictions on the same rows, and on the rows drawn again.

    Attributes:
        values: One per prediction.
        again: (resamples, predictions).
    """

    values: NDArray[np.float64]
    again: NDArray[np.float64]

    @classmethod
    def of(cls, metric: str, labels: NDArray[np.str_], *predicted: NDArray[np.str_]) -> "Resampled":
        """Measures predictions (N,) against labels (N,); the rows drawn are the same for all."""
        classes = np.unique(labels)
        true = labels[:, None] == classes
        named = np.stack([found[:, None] == classes for found in predicted], axis=1)
        parts = np.broadcast_to(true[:, None], named.shape), named & true[:, None], named
        columns = np.stack(parts, axis=2).astype(np.float32)
        flat = columns.reshape(len(labels), -1)
        score, shape = METRICS[metric], columns.shape[1:]
        again = sums_again(flat)
        return cls(score(flat.sum(axis=0).reshape(shape)), score(again.reshape(-1, *shape)))

    @property
    def gain(self) -> float:
        """Value of the first prediction minus that of the second."""
        return float(self.values[0] - self.values[1])

    def bound(self, alpha: float) -> float:
        """The gain's percentile at alpha."""
        return float(np.quantile(self.again[:, 0] - self.again[:, 1], alpha))


class Quality(Gate):
    """The challenger is better than the champion, or as good, and not by chance.

    Superiority: the gain is above zero, at least `margin`, and shown. Accuracy is tested by the
    exact McNemar test, the other metrics by a paired bootstrap over rows (Efron 1979): the gain's
    one-sided lower bound at confidence 1 - `alpha` lies above zero.

    Non-inferiority: the same bound of the gain lies above -`margin`. For accuracy it is that of
    Tango's score interval (1998, Statistics in Medicine 17:891), which does not shrink to a point
    where both are right on the same rows: equal answers pass only where the rows are many enough
    for the margin, and with a margin of 0 nothing passes that is not shown to be better. The
    bootstrap has no such caution: it cannot imagine a difference that no row shows.

    The first version ever has no champion. It is held against two stated floors: the whole 95%
    interval of its metric (accuracy: Wilson 1927) lies above that of always naming the most
    frequent class, and on the same rows it is not behind the labels-only control: by no more than
    `margin` where non-inferiority is asked for and by nothing otherwise, and not shown to be worse
    at `alpha`.

    Attributes:
        metric: `accuracy`, `balanced_accuracy` (mean recall of the classes) or `macro_f1`.
        test: `superiority` or `non_inferiority`.
        margin: Superiority: smallest gain that counts. Non-inferiority: largest loss that does not.
        alpha: Chance of passing a challenger that is no better (worse by the margin).
    """

    name: Literal["quality"] = "quality"
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1"] = "accuracy"
    test: Literal["superiority", "non_inferiority"] = "superiority"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05

    @property
    def _words(self) -> str:
        return self.metric.replace("_", " ").replace("f1", "F1")

    @property
    def _confidence(self) -> str:
        return f"{100 * (1 - self.alpha):.4g}%"

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        if evidence.champion is None:
            return self._judge_first(evidence)
        if self.metric == "accuracy":
            return self._judge_accuracy(evidence, evidence.champion.labels)
        return self._judge_resampled(evidence, evidence.champion.labels)

    def _verdict(self, *, passed: bool, sentence: str, figures: dict[str, float]) -> Verdict:
        return Verdict(gate=self.name, passed=passed, sentence=sentence, figures=figures)

    def _outcome(self, *, passed: bool) -> str:
        if self.test == "superiority":
            return "better" if passed else "not shown to be better"
        return f"{'shown' if passed else 'not shown'} to be less than {self.margin:.2%} worse"

    def _holds(self, gain: float, low: float) -> bool:
        if self.test == "superiority":
            return gain > 0 and gain >= self.margin and low > 0
        return low > -self.margin

    def _bound_words(self, low: float) -> str:
        return f"at {self._confidence} confidence it is above {low:+.2%}"

    def _asked(self) -> str:
        if self.test == "non_inferiority":
            return f"asked for: above {0 - self.margin:+.2%}"
        return f"asked for: {self.margin:.2%} and above zero"

    def _judge_accuracy(self, evidence: Evidence, champion: NDArray[np.str_]) -> Verdict:
        found = paired(evidence.right(evidence.challenger), champion == evidence.labels)
        figures: dict[str, float] = {
            "gain": found.gain,
            "only_challenger": found.only_first,
            "only_champion": found.only_second,
        }
        if self.test == "superiority":
            passed = found.gain > 0 and found.gain >= self.margin and found.p_value <= self.alpha
            figures["p_value"] = found.p_value
            asked = f"asked for: {self.margin:.2%} and p at most {self.alpha:g}"
            shown = f"p = {found.p_value:.3g}"
        else:
            low = figures["low"] = found.lower_bound(self.alpha)
            passed = self._holds(found.gain, low)
            asked, shown = self._asked(), self._bound_words(low)
        why = (
            f"{self._outcome(passed=passed)} than the champion on the same {found.rows} test rows: "
            f"accuracy {found.gain:+.2%} ({asked}), {found.only_first} rows right that it gets "
            f"wrong, {found.only_second} the other way, {shown}"
        )
        return self._verdict(passed=passed, sentence=why, figures=figures)

    def _judge_resampled(self, evidence: Evidence, champion: NDArray[np.str_]) -> Verdict:
        found = Resampled.of(self.metric, evidence.labels, evidence.challenger.labels, champion)
        low = found.bound(self.alpha)
        passed = self._holds(found.gain, low)
        why = (
            f"{self._outcome(passed=passed)} than the champion on the same "
            f"{len(evidence.rows)} test rows: {self._words} {found.values[0]:.2%} against "
            f"{found.values[1]:.2%}, {found.gain:+.2%}, {self._bound_words(low)} ({self._asked()})"
        )
        figures = {
            "challenger": float(found.values[0]),
            "champion": float(found.values[1]),
            "gain": found.gain,
            "low": low,
        }
        return self._verdict(passed=passed, sentence=why, figures=figures)

    def _judge_first(self, evidence: Evidence) -> Verdict:
        floor = self._against_majority(evidence)
        if evidence.control is None:
            missing = f"{floor.sentence}; there is no labels-only control to compare with"
            return self._verdict(passed=floor.passed, sentence=missing, figures=floor.figures)
        control = self._against_control(evidence, evidence.control)
        return self._verdict(
            passed=floor.passed and control.passed,
            sentence=f"{floor.sentence}; {control.sentence}",
            figures=floor.figures | control.figures,
        )

    def _against_majority(self, evidence: Evidence) -> Verdict:
        value, low, high, floor = self._measured(evidence)
        passed = low > floor
        why = (
            f"first version: {self._words} {value:.2%} (95% interval {low:.2%} to {high:.2%}) is "
            f"{'above' if passed else 'not clearly above'} the floor {floor:.2%}, always naming "
            "the most frequent class"
        )
        figures = {self.metric: value, "low": low, "high": high, "floor": floor}
        return self._verdict(passed=passed, sentence=why, figures=figures)

    def _measured(self, evidence: Evidence) -> tuple[float, float, float, float]:
        """The metric, the ends of its interval, and its floor."""
        classes, counts = np.unique(evidence.labels, return_counts=True)
        if self.metric == "accuracy":
            found = share(evidence.right(evidence.challenger))
            return found.value, found.low, found.high, float(counts.max() / counts.sum())
        majority = np.full_like(evidence.labels, classes[counts.argmax()])
        both = Resampled.of(self.metric, evidence.labels, evidence.challenger.labels, majority)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(both.again[:, 0], [tail, 1 - tail])
        return float(both.values[0]), float(low), float(high), float(both.values[1])

    def _against_control(self, evidence: Evidence, control: NDArray[np.str_]) -> Verdict:
        gain, worse, shown = self._behind(evidence, control)
        allowed = self.margin if self.test == "non_inferiority" else 0.0
        passed = gain >= -allowed and not worse
        why = (
            f"{'not behind' if passed else 'behind'} the labels-only control on the same rows: "
            f"{self._words} {gain:+.2%} (asked for: at least {0 - allowed:+.2%}, and not shown to "
            f"be worse at {self.alpha:g}), {shown}"
        )
        return self._verdict(passed=passed, sentence=why, figures={"control_gain": gain})

    def _behind(self, evidence: Evidence, control: NDArray[np.str_]) -> tuple[float, bool, str]:
        """Gain over the control, whether it is shown to be a loss, and the figure that says so."""
        if self.metric == "accuracy":
            right = evidence.right(evidence.challenger)
            found = paired(control == evidence.labels, right)
            shown = f"p of being no worse = {found.p_value:.3g}"
            return 0 - found.gain, found.p_value <= self.alpha, shown
        both = Resampled.of(self.metric, evidence.labels, evidence.challenger.labels, control)
        high = both.bound(1 - self.alpha)
        return both.gain, high < 0, f"at {self._confidence} confidence it is below {high:+.2%}"
