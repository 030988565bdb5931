"""A model card in Markdown, for people (Mitchell et al. 2019, doi:10.1145/3287560.3287596).

Says what records, reports and the ledger say, and nothing else: a section that they have nothing to
say about is left out.
"""

import re
from collections.abc import Iterable, Iterator

from tasks.documents import CONTROL, Chain, Link, Manifest, Promotion, dotted
from tasks.evaluate import Measured

FILE_NAME = "model-card.md"
ACTIVE = re.compile(r"[\\`*_\[\]<>~&#$@]|:(?=//)|(?<=[wW]{3})\.")
BAR = "\\|"
BYTES_PER_KIB = 1024


def render(chain: Chain) -> bytes:
    """The card, in UTF-8."""
    sections = (_head, _data, _making, _figures, _promotions, _limits, _lineage, _checking)
    parts = ["\n".join(lines) for section in sections if (lines := list(section(chain)))]
    return ("\n\n".join(parts) + "\n").encode()


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: on one line, with nothing that formats or links."""
    return ACTIVE.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """Text in a code span, on one line."""
    plain = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table's lines; cells are Markdown already."""
    names = list(head)
    for row in (names, ["---"] * len(names), *rows):
        yield f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |"


def _head(chain: Chain) -> Iterator[str]:
    made = f"{chain.subject.made.ended:%Y-%m-%d %H:%M:%S} UTC"
    yield f"# {escaped(chain.version.name)}, version {chain.version.version}"
    yield ""
    yield from _what(chain)
    yield f"- Made on {made} by the stage {code(chain.subject.record.stage)}."
    names = ", ".join(sorted({promotion.entry.alias for promotion in chain.promotions}))
    if names:
        yield f"- It was given the alias {code(names)}; see Promotions."


def _what(chain: Chain) -> Iterator[str]:
    if chain.schema is not None:
        classes = [code(str(name)) for name in chain.schema["classes"]]
        modality = code(str(chain.schema["modality"]["name"]))
        yield f"- A classifier of {modality} with {len(classes)} classes: {', '.join(classes)}."
    if chain.network is not None:
        parameters = ", ".join(
            code(f"{name} = {value}") for name, value in dotted(chain.network["network"])
        )
        before = ", before it was pruned" if chain.network.get("sizes") else ""
        yield f"- Its network{before}: {parameters}."
    if chain.measured is not None:
        size = chain.measured.size_bytes / BYTES_PER_KIB
        yield f"- Its file has {size:.1f} KiB."


def _data(chain: Chain) -> Iterator[str]:
    yield "## Data"
    for ref in chain.data:
        yield ""
        yield f"Data version {code(ref.prepared)}, prepared from {code(ref.raw)}."
        manifest = chain.manifests[ref.content]
        if not isinstance(manifest, Manifest):
            yield f"Its row manifest is not at hand: {escaped(manifest)}"
            continue
        yield ""
        counts = (
            (code(split), str(rows), str(manifest.shown.get(split, 0)))
            for split, rows in manifest.rows.items()
        )
        yield from table(("split", "rows", "labels shown"), counts)


def _making(chain: Chain) -> Iterator[str]:
    yield "## How it was made"
    for number, link in enumerate(chain.links, start=1):
        parents = ", ".join(_parents(chain, link))
        start = f", from {parents}" if parents else ""
        yield ""
        yield f"### {number}. {escaped(link.record.stage)} → {escaped(link.name)}"
        yield ""
        yield f"Stage {code(link.record.stage)}{start}."
        told = list(dotted(link.record.parameters))
        if told:
            yield ""
            yield from table(("parameter", "value"), ((code(n), code(v)) for n, v in told))


def _parents(chain: Chain, link: Link) -> Iterator[str]:
    for parent in link.record.parents:
        yield f"{code(chain.by_digest[parent.record].name)} as {code(parent.role)}"


def _figures(chain: Chain) -> Iterator[str]:
    own = chain.subject.record.metrics
    if chain.evaluation is None and not own:
        return
    yield "## Figures"
    if chain.evaluation is not None:
        yield ""
        yield f"On {chain.evaluation.rows} test rows; in brackets the 95% Wilson interval."
        yield ""
        rows = (_row(chain, found) for found in chain.evaluation.models)
        yield from table(("model", "accuracy", "size, KiB", "latency, ms"), rows)
        yield ""
        yield f"Always naming the most frequent class: {chain.evaluation.majority_share:.2%}."
        yield from _gain(chain)
        yield from _attacks(chain)
    if own:
        yield ""
        yield "Figures that its own stage returned:"
        yield ""
        yield from table(("figure", "value"), ((code(n), f"{v:.6g}") for n, v in own.items()))


def _gain(chain: Chain) -> Iterator[str]:
    """The report compares the edge model with the control; other versions it does not."""
    if chain.evaluation is None or chain.role != "edge" or chain.control is None:
        return
    yield (
        f"Its accuracy minus the control's is {100 * chain.evaluation.gain_over_control:+.2f} "
        f"percentage points (exact McNemar test that it is no better: p = "
        f"{chain.evaluation.p_value:.3g})."
    )


def _attacks(chain: Chain) -> Iterator[str]:
    """Membership inference: can its training rows be told from rows that it never saw?"""
    if not chain.attacks:
        return
    yield ""
    yield "Telling its training rows from held-out rows by its answers; an AUC of 0.5 is guessing."
    yield ""
    yield from table(
        ("training rows", "AUC (95% interval)", "training rows asked", "held-out rows asked"),
        (
            (
                code(name),
                f"{found.auc:.3f} ({found.low:.3f} to {found.high:.3f})",
                str(found.members),
                str(found.held_out),
            )
            for name, found in chain.attacks.items()
        ),
    )


def _row(chain: Chain, found: Measured) -> tuple[str, ...]:
    name = code(found.role)
    if found.role == chain.role:
        name = f"**{name}**"
    elif found.role == CONTROL:
        name = f"{name} (from labels alone)"
    return (
        name,
        f"{found.accuracy:.2%} ({found.low:.2%} to {found.high:.2%})",
        f"{found.size_bytes / BYTES_PER_KIB:.1f}",
        f"{found.latency_p50_ms:.3f}",
    )


def _promotions(chain: Chain) -> Iterator[str]:
    if not chain.promotions:
        return
    yield "## Promotions"
    for promotion in chain.promotions:
        yield ""
        yield from _promotion(promotion)


def _promotion(promotion: Promotion) -> Iterator[str]:
    entry = promotion.entry
    before = f" after version {entry.previous_version}" if entry.previous_version else ""
    yield (
        f"- {code(entry.time)}, row {entry.sequence} of the ledger: "
        f"{entry.action.replace('_', ' ')} to {code(entry.alias)}{before} by {code(entry.actor)}. "
        f"{escaped(entry.reason)}"
    )
    if promotion.doubt is not None:
        yield f"  - **The evidence does not bear this out:** {escaped(promotion.doubt)}"
    for verdict in promotion.verdicts:
        word = "passed" if verdict.passed else "failed"
        yield f"  - gate {code(verdict.gate)} {word}: {escaped(verdict.sentence)}"


def _limits(chain: Chain) -> Iterator[str]:
    limits = list(_known_limits(chain))
    if limits:
        yield "## Limits"
        yield ""
        yield from (f"- {limit}" for limit in limits)


def _known_limits(chain: Chain) -> Iterator[str]:
    if chain.schema is not None:
        yield "Every row is given one of the classes above, also one that belongs to none of them."
    if chain.evaluation is not None:
        host = escaped(chain.evaluation.host)
        yield f"Latency was measured on one host, batch 1, one thread: {host}."
        yield "The test rows are rows of the same data: other data may give other figures."
    else:
        yield "It was registered without an evaluation."
    unclean = sorted({link.name for link in chain.links if not link.record.code.clean})
    if unclean:
        names = ", ".join(code(name) for name in unclean)
        yield f"Made by code that was not committed, so only its digest is known: {names}."


def _lineage(chain: Chain) -> Iterator[str]:
    yield "## Lineage"
    yield ""
    yield "All files were hashed again while this card was written. sha256 of each record:"
    yield ""
    links = [*chain.links, *([chain.report] if chain.report else [])]
    yield from table(
        ("model", "version", "record", "content"),
        (
            (
                code(link.name),
                str(link.version or "–"),
                code(link.digest),
                code(link.record.content),
            )
            for link in links
        ),
    )
    for ref in chain.data:
        yield ""
        yield f"Data: content {code(ref.content)}, row manifest {code(ref.manifest)}."
    commits = sorted({link.record.code.commit or "none" for link in chain.links})
    digests = sorted({link.record.code.digest for link in chain.links})
    yield ""
    yield (
        f"Code: commit {', '.join(map(code, commits))}, digest of `tasks/` "
        f"{', '.join(map(code, digests))}."
    )


def _checking(chain: Chain) -> Iterator[str]:
    name = f"{chain.version.name}:{chain.version.version}"
    yield "## How to check this"
    yield ""
    yield f"- {code(f'stillmark verify {name}')} hashes every file, record and data version again."
    yield f"- {code(f'stillmark replay {name}')} makes it again and compares."
    yield f"- {code(f'stillmark trace {name}')} shows what it was made from."
