"""Fusion: the runtime's fused int8 kernels answer as the quantized graph says."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.gates import Evidence, Gate, Verdict, unmeasured

AGREEMENT, DIFFERENCE = "fused_agreement", "fused_difference"


class Fusion(Gate):
    """Fused and un-fused int8 outputs are alike, on the host that quantized the challenger.

    ONNX Runtime fuses a quantized graph into int8 kernels; processors differ in how these add
    (16 bits overflow where there is no VNNI). The quantize stage compares them with the same graph
    run operator by operator, on training rows. The share as measured decides. A version without
    that figure does not pass.

    Attributes:
        at_least: Smallest share of rows on which both name the same class.
    """

    name: Literal["fusion"] = "fusion"
    at_least: Annotated[float, Field(gt=0, le=1)] = 0.99

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        metrics = evidence.challenger.metrics
        if AGREEMENT not in metrics:
            return unmeasured(self, "comparison of fused with un-fused int8 outputs")
        figures = {name: metrics[name] for name in (AGREEMENT, DIFFERENCE) if name in metrics}
        share = figures[AGREEMENT]
        apart = ""
        if DIFFERENCE in figures:
            apart = f"; logits differ by at most {figures[DIFFERENCE]:.3g} of the largest"
        why = (
            f"fused int8 kernels name the class of the un-fused graph on {share:.2%} of the rows "
            f"compared (asked for: at least {self.at_least:.2%}){apart}"
        )
        passed = share >= self.at_least
        return Verdict(gate=self.name, passed=passed, sentence=why, figures=figures)
