"""Lineage: nothing is promoted whose making cannot be traced."""

from typing import Literal

from tasks.gates import Evidence, Gate, Verdict


class Lineage(Gate):
    """Every record and file behind the challenger was verified.

    Attributes:
        clean_tree: Whether code that was not committed fails too: nobody can get it again.
    """

    name: Literal["lineage"] = "lineage"
    clean_tree: bool = True

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        found, clean = evidence.challenger.lineage, evidence.challenger.clean
        reasons = []
        if found:
            count = "1 fault" if len(found) == 1 else f"{len(found)} faults, the first"
            reasons.append(f"its lineage has {count}: {' '.join(found[0].split())}")
        if self.clean_tree and not clean:
            reasons.append("code that was not committed made it: commit, and train again")
        made = "by committed code" if clean else "by code that was not committed, as is allowed"
        why = "; ".join(reasons) or f"every record and file of its lineage verified, made {made}"
        figures = {"faults": float(len(found)), "clean": float(clean)}
        return Verdict(gate=self.name, passed=not reasons, sentence=why, figures=figures)
