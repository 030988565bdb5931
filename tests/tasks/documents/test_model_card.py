import html
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tasks import documents
from tasks.documents.model_card import code, escaped, table

MARKDOWN = MarkdownIt("commonmark").enable("table")
HOSTILE = st.text(st.sampled_from("ab1 `*_{}[]()<>#+-.!|~&\\\n\r\t$@:/'\"ä"), max_size=24)


@pytest.fixture(scope="module")
def card(chain):
    return documents.render("model_card", chain).decode()


@pytest.fixture(scope="module")
def shown(card):
    """What a reader sees: the card's text without marks."""
    return seen(MARKDOWN.render(card))


def seen(rendered):
    return html.unescape(re.sub(r"<[^>]*>", " ", rendered))


def section(card, name):
    return card.partition(f"## {name}\n")[2].partition("\n## ")[0]


def inline(markdown):
    (paragraph,) = [one for one in MARKDOWN.parse(markdown) if one.type == "inline"]
    return paragraph.children


@given(text=HOSTILE)
@example(text="[a](http://b)")
@example(text="<script>alert(1)</script>")
@example(text="&amp;")
def test_escaped_text_is_shown_as_it_is(text):
    found = inline(f"x{escaped(text)}x")
    assert {one.type for one in found} <= {"text", "text_special"}
    assert "".join(one.content for one in found) == f"x{' '.join(text.split())}x"


@given(text=HOSTILE)
def test_code_is_one_span_with_the_text_in_it(text):
    found = inline(f"x {code(text)} x")
    spans = [one.content for one in found if one.type == "code_inline"]
    assert {one.type for one in found} <= {"text", "code_inline"}
    assert [span.strip() for span in spans] == [" ".join(text.split())]


@given(cells=st.lists(HOSTILE, min_size=2, max_size=2))
def test_a_table_has_as_many_cells_as_its_head(cells):
    lines = table(("a", "b"), [(code(cells[0]), escaped(cells[1]))])
    tokens = MARKDOWN.parse("\n".join(lines))
    found = [after for one, after in pairwise(tokens) if one.type == "td_open"]
    assert len(found) == 2
    spans = [one.content.strip() for one in found[0].children if one.type == "code_inline"]
    assert spans == [" ".join(cells[0].split())]
    assert seen(
        MARKDOWN.renderer.renderInline(found[1].children, MARKDOWN.options, {})
    ) == " ".join(cells[1].split())


def test_it_says_what_the_model_is(card, shown):
    assert card.startswith("# digits.edge, version 1\n")
    assert "A classifier of images with 3 classes: 0 , 1 , 2" in re.sub(r" +", " ", shown)


def test_rows_and_shown_labels_are_in_a_table(card, chain):
    (manifest,) = chain.manifests.values()
    for split, rows in manifest.rows.items():
        line = f"| `{split}` | {rows} | {manifest.shown.get(split, 0)} |"
        assert line in section(card, "Data")


def test_every_stage_is_told_in_order_with_its_parameters(card):
    making = section(card, "How it was made")
    titles = re.findall(r"^### (.*)$", making, re.MULTILINE)
    assert titles == [
        "1. guess → digits.teacher",
        "2. guess → digits.student",
        "3. guess → digits.edge",
    ]
    assert "from `digits.student` as `dense`, `digits.teacher` as `teacher`" in making
    assert making.count("| `quality` | `good` |") == 2
    assert making.count("| `quality` | `fair` |") == 1


def test_figures_stand_beside_the_control_with_their_intervals(card):
    figures = section(card, "Figures")
    assert "On 40 test rows" in figures
    assert "| **`edge`** | 50.00% (37.50% to 62.50%) | 2.0 | 0.250 |" in figures
    assert "| `control` (from labels alone) | 25.00% (12.50% to 37.50%) |" in figures
    assert "+25.00 percentage points" in figures
    assert "p = 0.0156" in figures
    assert "most frequent class: 37.50%" in figures
    assert "| `labelled` | 0.625 (0.500 to 0.750) | 24 | 40 |" in figures
    assert "| `pool` |" not in figures


def test_a_promotion_is_told_with_every_gate(card, chain):
    told = section(card, "Promotions")
    (promotion,) = chain.promotions
    assert promotion.entry.time in told
    assert "promoted to `champion`" in told
    for verdict in promotion.verdicts:
        assert f"gate `{verdict.gate}` passed: {escaped(verdict.sentence)}" in told


def test_digests_of_every_record_are_there_to_compare(card, story):
    lineage = section(card, "Lineage")
    for role in ("teacher", "student", "edge"):
        assert f"| `digits.{role}` | 1 | `{story.models[role].record}` |" in lineage
    assert story.report.record in lineage
    assert story.bench.run.data.content in lineage
    assert story.bench.run.data.manifest in lineage


def test_it_says_how_to_check_it(card):
    assert "`stillmark verify digits.edge:1`" in section(card, "How to check this")


def test_what_came_from_outside_formats_nothing(card):
    assert "A <processor>, 2 cores" not in card
    rendered = MARKDOWN.render(card)
    assert "A &lt;processor&gt;, 2 cores" in rendered
    assert "<processor>" not in rendered


def test_evidence_that_was_changed_is_told(own):
    (promotion,) = own.gather().promotions
    folder = own.bench.tracking.report(promotion.entry.evidence_run)
    (folder / "facts.json").unlink()
    card = documents.render("model_card", own.gather()).decode()
    assert "**The evidence does not bear this out:** facts.json" in section(card, "Promotions")


def test_sections_without_facts_are_left_out(own):
    client = own.bench.tracking.client
    client.delete_model_version_tag("digits.edge", "1", "stillmark.evaluation")
    card = documents.render("model_card", own.gather(ledger=None)).decode()
    titles = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert titles == [
        "Data",
        "How it was made",
        "Figures",
        "Limits",
        "Lineage",
        "How to check this",
    ]
    assert "registered without an evaluation" in card
    assert "test rows; in brackets" not in card


def test_a_manifest_that_is_not_at_hand_is_said_to_be_so(own):
    (own.bench.root / "prepared" / "manifest.parquet").unlink()
    card = documents.render("model_card", own.gather()).decode()
    assert "Its row manifest is not at hand: " in section(card, "Data")
