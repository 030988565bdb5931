import pytest

from tasks.triggers.code import Code

SECTIONS = {"teach": "t", "distill": "d"}


@pytest.mark.parametrize(
    ("code", "sections", "trigger", "sentence"),
    [
        ("x", SECTIONS, "code", "the code of the stages changed"),
        ("c" * 64, SECTIONS | {"teach": "u"}, "parameters", "teach in params.yaml changed"),
        ("c" * 64, {"teach": "t", "prune": "p"}, "parameters", "distill, prune in params.yaml"),
        ("x", SECTIONS | {"teach": "u"}, "code", "the code of the stages and teach in params.yaml"),
    ],
)
def test_what_changed_is_named(told, before, code, sections, trigger, sentence):
    found = Code().look(told(before=before(), code=code, sections=sections))
    assert found.reason.trigger == trigger
    assert found.trigger == "code"
    assert found.sentence.startswith(sentence)


def test_another_change_is_about_something_else(told, before):
    def about(code, sections):
        return Code().look(told(before=before(), code=code, sections=sections)).reason.about

    assert about("x", SECTIONS) == about("x", dict(reversed(SECTIONS.items())))
    assert len({about("x", SECTIONS), about("y", SECTIONS), about("x", {"teach": "t"})}) == 3


def test_nothing_changed_or_nothing_to_differ_from_is_no_reason(told, before):
    assert Code().look(told(before=before(), code="c" * 64, sections=SECTIONS)).reason is None
    assert Code().look(told(before=None)).reason is None
