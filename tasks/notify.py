"""What people are told when a champion changes: Prefect events, and a webhook of their own."""

import logging
import time
from typing import Literal

import httpx
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from pydantic import BaseModel, ConfigDict

from tasks.settings import Settings

TRIES, FIRST_WAIT_SECONDS, TIMEOUT_SECONDS = 3, 0.5, 5.0

log = logging.getLogger("stillmark")

What = Literal["promoted", "rejected", "rolled_back", "awaiting", "out_of_band"]


class News(BaseModel):
    """What happened to a model.

    Attributes:
        what: The kind of thing.
        model: Its registered name.
        version: The version that it is about, or None.
        sentence: For people.
        actor: Who did it.
    """

    model_config = ConfigDict(frozen=True)

    what: What
    model: str
    version: int | None
    sentence: str
    actor: str


def announce(settings: Settings, news: News) -> None:
    """Tells Prefect, whose automations can pass it on, and the webhook where one is set.

    Nobody is kept waiting for long, and nothing is undone, where the webhook does not answer: that
    is logged as a warning.
    """
    if FlowRunContext.get() or TaskRunContext.get():  # elsewhere an event would start a server
        emit_event(
            event=f"stillmark.{news.what}",
            resource={
                "prefect.resource.id": f"stillmark.model.{news.model}",
                "stillmark.version": str(news.version or ""),
            },
            payload=news.model_dump(),
        )
    if settings.webhook is not None:
        reason = _post(settings.webhook.get_secret_value(), news)
        if reason:
            log.warning("the webhook was not told that %s: %s", news.sentence, reason)


def _post(address: str, news: News) -> str | None:
    """Posts JSON; returns what went wrong in the end."""
    reason: str | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
        try:
            answer = httpx.post(address, json=news.model_dump(), timeout=TIMEOUT_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Its address may hold a secret, which the error's own text would repeat.
            reason = type(error).__name__
            continue
        if answer.is_success:
            return None
        reason = f"it answered {answer.status_code}"
        if answer.is_client_error:
            return reason
    return reason
