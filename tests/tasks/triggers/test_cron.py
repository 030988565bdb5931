from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ParamsError
from tasks.triggers import TRIGGERS
from tasks.triggers.cron import Cron

BERLIN = ZoneInfo("Europe/Berlin")


def at(text, zone=UTC):
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


@pytest.mark.parametrize(
    ("since", "now", "due"),
    [
        ("2026-11-20 03:00", "2026-11-21 02:59", None),
        ("2026-11-20 03:00", "2026-11-21 03:00", "2026-11-21T03:00"),
        ("2026-11-20 03:00", "2026-11-21 23:00", "2026-11-21T03:00"),
        ("2026-11-01 12:00", "2026-11-21 12:00", "2026-11-21T03:00"),
        ("2026-11-21 03:00:01", "2026-11-21 12:00", None),
    ],
)
def test_due_where_a_moment_lies_between_the_last_retraining_and_now(told, before, since, now, due):
    """Twenty missed nights are one reason, about the last of them."""
    signals = told(now=at(now), before=before(at(since)))
    reason = Cron(expression="0 3 * * *").look(signals).reason
    assert (reason and reason.about) == (due and f"cron:{due}:00+00:00")


def test_before_the_first_retraining_moments_count_from_the_first_look(told):
    cron = Cron(expression="0 3 * * *")
    late = told(now=at("2026-11-21 12:00"), before=None)
    assert cron.look(late).reason is None
    since = at("2026-11-21 02:00")
    early = told(now=at("2026-11-21 12:00"), watched_since=since, before=None)
    assert cron.look(early).reason.figures == {"late_seconds": 9 * 3600.0}


def test_a_retraining_in_the_future_is_said_and_moments_count_from_the_first_look(told, before):
    """A clock that was ahead once must not silence the trigger until that date."""
    now = at("2026-11-21 12:00")
    cron = Cron(expression="0 3 * * *")
    ahead = before(now + timedelta(hours=36))
    waits = cron.look(told(now=now, before=ahead))
    assert waits.reason is None
    assert "36.0 hours in the future: set the clock right" in waits.sentence
    fires = cron.look(told(now=now, watched_since=at("2026-11-20 12:00"), before=ahead))
    assert fires.reason.about == "cron:2026-11-21T03:00:00+00:00"


@pytest.mark.parametrize(
    ("expression", "now", "expected"),
    [
        # 2026-03-29: 02:00 becomes 03:00; what was to be in between comes right after.
        ("30 2 * * *", "2026-03-29 01:00:00+00:00", "2026-03-29 01:00:00+00:00"),
        ("30 2 * * *", "2026-03-29 00:59:59+00:00", "2026-03-28 01:30:00+00:00"),
        ("30 2 * * *", "2026-03-30 00:30:00+00:00", "2026-03-30 00:30:00+00:00"),
        # 2026-10-25: 03:00 becomes 02:00; 02:30 comes once, the first time.
        ("30 2 * * *", "2026-10-25 00:30:00+00:00", "2026-10-25 00:30:00+00:00"),
        ("30 2 * * *", "2026-10-25 01:15:00+00:00", "2026-10-25 00:30:00+00:00"),
        ("30 2 * * *", "2026-10-25 01:45:00+00:00", "2026-10-25 00:30:00+00:00"),
        # Every real hour.
        ("30 * * * *", "2026-10-25 01:45:00+00:00", "2026-10-25 01:30:00+00:00"),
        ("30 * * * *", "2026-03-29 01:31:00+00:00", "2026-03-29 01:30:00+00:00"),
    ],
)
def test_when_the_clock_changes_no_moment_is_lost_or_doubled(expression, now, expected):
    cron = Cron(expression=expression, timezone="Europe/Berlin")
    assert str(cron.last_moment(datetime.fromisoformat(now))) == expected


@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    day=st.integers(0, 6),
    now=st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),  # noqa: DTZ001 - made aware below
)
def test_weekly_moments_are_those_found_minute_by_minute(minute, hour, day, now):
    """Against plain arithmetic; cron's Sunday is 0."""
    now = now.replace(tzinfo=UTC)
    expected = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    while expected > now or expected.isoweekday() % 7 != day:
        expected -= timedelta(days=1)
    assert Cron(expression=f"{minute} {hour} * * {day}").last_moment(now) == expected


CHANGES = st.sampled_from([datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)])


@given(day=CHANGES, seconds=st.integers(-100_000, 100_000))
def test_the_last_moment_is_never_in_the_future_and_none_is_skipped(day, seconds):
    """Around either change of the clock, daily moments are 25 hours apart at most."""
    now = day + timedelta(seconds=seconds)
    for expression in ("30 2 * * *", "59 2 * * *", "0 3 * * *"):
        found = Cron(expression=expression, timezone="Europe/Berlin").last_moment(now)
        assert timedelta(0) <= now - found <= timedelta(hours=25)
        assert Cron(expression=expression, timezone="Europe/Berlin").last_moment(found) == found


def test_the_sentence_names_the_next_moment_in_the_users_zone(told, before):
    cron = Cron(expression="0 3 * * *", timezone="Europe/Berlin")
    found = cron.look(told(now=at("2026-11-21 12:00"), before=before(at("2026-11-21 02:00"))))
    assert found.reason is None
    assert "next moment of '0 3 * * *' is 2026-11-22 03:00+01:00" in found.sentence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expression": "0 3 * *"}, "has 4 fields, expected five; for example '30 2 * * 1-5'"),
        ({"expression": "0 0 3 * * *"}, "has 6 fields, expected five"),
        ({"expression": "0 25 * * *"}, "wrong is the field hour; for example"),
        ({"expression": "0 3 30 2 *"}, "wrong is the field day-of-month"),
        ({"expression": "every night at 3 am"}, "wrong is the field minute"),
        ({"timezone": "Europe/Berlim"}, "did you mean 'Europe/Berlin'"),
        ({"timezone": "../../etc/passwd"}, "no time zone of that name"),
    ],
)
def test_what_is_wrong_is_said_with_its_path_and_an_example(change, message):
    plain = {"name": "cron", "expression": "0 3 * * *"} | change
    with pytest.raises(ParamsError) as caught:
        TRIGGERS.parse(plain, "schedule.triggers[0]")
    (name,) = change
    assert str(caught.value).startswith(f"params.yaml: 'schedule.triggers[0].{name}' is ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
