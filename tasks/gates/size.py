"""Size: quantization really made the file smaller."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict, unmeasured

RATIO = "size_ratio"


class Size(Gate):
    """The challenger's file is smaller than that of the float model that it was quantized from.

    Both sizes are those of the ONNX files, as the quantize stage measured them; `budget` limits
    the size itself, and that against the champion. A version without that figure does not pass.

    Attributes:
        largest_ratio: Its bytes divided by the float model's, at most.
    """

    name: Literal["size"] = "size"
    largest_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        ratio = evidence.challenger.metrics.get(RATIO)
        if ratio is None:
            return unmeasured(self, "size of the float model that it was quantized from")
        why = (
            f"its file is {ratio:.2%} of the float model's (asked for: at most "
            f"{self.largest_ratio:.2%})"
        )
        passed = ratio <= self.largest_ratio
        return Verdict(gate=self.name, passed=passed, sentence=why, figures={RATIO: ratio})
