"""Export: the file that leaves torch computes what torch computes."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict, unmeasured

DIFFERENCE = "export_difference"


class Export(Gate):
    """The exported float model answers as the eager network, on the host that made the challenger.

    Compared are the logits of the ONNX file that was quantized, in ONNX Runtime, with those of the
    network in torch, on real rows. The largest absolute difference decides. A version without that
    figure does not pass.

    Attributes:
        tolerance: Largest absolute difference of a logit.
    """

    name: Literal["export"] = "export"
    tolerance: Annotated[float, Field(gt=0)] = 1e-3

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        difference = evidence.challenger.metrics.get(DIFFERENCE)
        if difference is None:
            return unmeasured(self, "comparison of the exported with the eager model")
        why = (
            f"logits of the exported model differ from the eager network's by at most "
            f"{difference:.3g} (asked for: at most {self.tolerance:g})"
        )
        passed = difference <= self.tolerance
        return Verdict(
            gate=self.name, passed=passed, sentence=why, figures={DIFFERENCE: difference}
        )
