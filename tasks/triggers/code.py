"""Code: the stages or their parameters changed."""

from typing import Literal

from tasks.lineage.digests import digest_of_value
from tasks.triggers import Answer, Signals, Trigger


class Code(Trigger):
    """Code or parameters are not what the last retraining used.

    Sections of params.yaml that train and judge nothing do not count.
    """

    name: Literal["code"] = "code"

    def look(self, signals: Signals) -> Answer:
        """See `Trigger.look`."""
        before = signals.before()
        if before is None:
            return self.rests("there was no retraining yet whose code and parameters could differ")
        code, sections = signals.code(), signals.sections()
        changed = sorted(
            name
            for name in before.sections.keys() | sections.keys()
            if before.sections.get(name) != sections.get(name)
        )
        if code == before.code and not changed:
            return self.rests("code and parameters are what the last retraining used")
        about = digest_of_value({"code": code, "sections": sections})
        said = [] if code == before.code else ["the code of the stages"]
        if changed:
            said.append(f"{', '.join(changed)} in params.yaml")
        name = "parameters" if code == before.code else "code"
        sentence = f"{' and '.join(said)} changed since the last retraining"
        return self.fires(sentence, about, name=name, sections_changed=len(changed))
