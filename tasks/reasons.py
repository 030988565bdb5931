"""Why a retraining starts."""

from pydantic import BaseModel, ConfigDict, Field


class Reason(BaseModel):
    """What woke a retraining.

    Attributes:
        trigger: Name of the trigger, or `hand` for a person, `backfill` for past data.
        sentence: For people.
        figures: What was measured, for machines; all finite.
        about: Digest of what was looked at, for example of rows that arrived, so that the same
            thing wakes nobody twice; empty where there is none.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    trigger: str = Field(min_length=1)
    sentence: str = Field(min_length=1)
    figures: dict[str, float] = {}
    about: str = ""


BY_HAND = Reason(trigger="hand", sentence="started by hand")
