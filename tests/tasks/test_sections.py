import datetime as dt
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from tasks.compute import ComputeParams
from tasks.errors import ParamsError
from tasks.fit import FitParams
from tasks.lineage.digests import digest_of_value
from tasks.losses import LOSSES, Loss
from tasks.sections import Section, hint, parse, tag_of


class Inner(Section):
    rate: Annotated[float, Field(gt=0)]
    momentum: float = 0.9


class Outer(Section):
    count: int
    inner: Inner
    names: tuple[str, ...] = ()
    losses: tuple[Annotated[Loss, LOSSES], ...] = ()
    maybe: Inner | None = None


RIGHT = {"count": 2, "inner": {"rate": 0.5}}


def refusal(value, path="top"):
    with pytest.raises(ParamsError) as caught:
        parse(Outer, value, path)
    return str(caught.value)


def test_takes_what_yaml_holds():
    found = parse(Outer, RIGHT | {"names": ["a", "b"], "inner": {"rate": 1}})
    assert (found.count, found.names, found.inner.rate) == (2, ("a", "b"), 1.0)


@pytest.mark.parametrize("count", ["2", 2.5, True, None, [2]])
def test_never_coerces_a_type(count):
    message = refusal(RIGHT | {"count": count})
    assert "'top.count'" in message
    assert "integer" in message


def test_a_value_out_of_range_is_shown_with_its_path():
    message = refusal({"count": 2, "inner": {"rate": -1}})
    assert message.startswith("params.yaml: 'top.inner.rate' is -1:")


def test_an_unknown_name_is_answered_with_the_nearest_and_the_known_ones():
    message = refusal({"count": 2, "inner": {"rate": 0.5, "momentun": 0.1}})
    assert message == (
        "params.yaml: unknown parameter 'top.inner.momentun'; did you mean 'momentum'? "
        "(known: momentum, rate)"
    )


def test_an_unknown_name_in_an_optional_section_is_answered_the_same_way():
    assert "did you mean 'rate'?" in refusal(RIGHT | {"maybe": {"rate": 1.0, "rat": 1.0}})


def test_a_missing_parameter_is_named():
    assert refusal({"count": 2, "inner": {}}) == "params.yaml: 'top.inner.rate' is missing"


def test_without_a_path_names_start_at_the_top():
    assert refusal({"count": 2}, "") == "params.yaml: 'inner' is missing"


def test_every_mistake_has_a_line_of_its_own():
    lines = refusal({"count": "x", "inner": {"rate": 0}, "nmes": []}).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("params.yaml: ") for line in lines)


def test_a_method_in_a_list_is_named_with_its_position():
    soft = {"name": "soft_labels"}
    message = refusal(RIGHT | {"losses": [soft, soft | {"temprature": 1.0}]})
    assert "losses[1]" in message
    assert "did you mean 'temperature'?" in message


def test_an_unknown_method_is_answered_with_the_nearest():
    message = refusal(RIGHT | {"losses": [{"name": "soft_label"}]})
    assert "unknown name 'soft_label'" in message
    assert "did you mean 'soft_labels'?" in message
    assert "hard_labels" in message


def test_a_method_without_a_name_is_told_so():
    assert "needs a 'name'" in refusal(RIGHT | {"losses": [{"temperature": 1.0}]})


def test_yaml_that_json_cannot_hold_is_refused_with_its_place():
    message = refusal(RIGHT | {"count": dt.date(2026, 1, 1)})
    assert message.startswith("params.yaml: top holds")


@pytest.mark.parametrize("value", [None, [], 3, "text"])
def test_a_section_must_be_a_mapping(value):
    assert "'top'" in refusal(value)


def test_sections_are_frozen():
    found = parse(Outer, RIGHT)
    with pytest.raises(ValidationError, match="frozen"):
        found.count = 3


def test_plain_data_builds_the_same_section_again():
    soft = {"name": "soft_labels", "temperature": 3.0, "weight": 0.5}
    found = parse(Outer, RIGHT | {"losses": [soft], "names": ["n"]})
    assert parse(Outer, found.plain()) == found
    assert found.plain()["losses"] == [soft]


@pytest.mark.parametrize(
    ("section", "value"),
    [
        (FitParams, {"steps": 1, "learning_rate": float("inf")}),
        (FitParams, {"steps": 1, "learning_rate": 0.1, "weight_decay": float("inf")}),
        (ComputeParams, {"seed": 2**60}),
    ],
)
def test_whatever_is_accepted_can_enter_a_stage_key(section, value):
    refused = ""
    try:
        assert digest_of_value(parse(section, value, "section").plain())
    except ParamsError as error:
        refused = str(error)
    assert not refused or "'section." in refused


def test_hint_is_silent_about_what_it_does_not_know():
    assert hint("abc", []) == ""
    assert "did you mean" not in hint("zzz", ["abc"])
    assert "(known: abc, b)" in hint("zzz", ["b", "abc"])


def test_a_plain_section_has_no_tag():
    assert tag_of(Outer) is None
    assert tag_of(LOSSES.methods["hard_labels"]) == "hard_labels"
