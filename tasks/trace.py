"""Trace: the graph from a model back to rows, raw data, code, parameters and environment.

What it says is what the records say. Whether the bytes still are those is for `verify` to find out.
"""

import html
import json
from collections.abc import Iterator
from typing import Any, Literal

from tasks.catalogue import Catalogue
from tasks.lineage.graph import Artifact, Held
from tasks.lineage.index import Index
from tasks.refs import Ref, VersionRef

DIGITS = 12
# Of the picture, in pixels; a letter of its type is about 6.6 wide.
BOX_WIDTH, BOX_HEIGHT, COLUMN_GAP, ROW_GAP, BAND_GAP, MARGIN = 250, 76, 110, 24, 50, 24
COLUMN, ROW = BOX_WIDTH + COLUMN_GAP, BOX_HEIGHT + ROW_GAP
LONGEST_LINE = 35
MADE = frozenset({"model", "report"})
NAMES = {"rows": "row manifest", "raw": "raw data", "code": "code", "environment": "environment"}
FILLS = {
    "model": "#dbeafe",
    "report": "#ede9fe",
    "rows": "#dcfce7",
    "raw": "#bbf7d0",
    "code": "#fef3c7",
    "environment": "#f3f4f6",
}
Kind = Literal["model", "report", "rows", "raw", "code", "parameters", "environment"]
State = Literal["known", "unknown", "missing"]


class Node(Ref):
    """One thing that a model comes from.

    Attributes:
        id: Unique in the graph; of a model or report, its record's sha256.
        kind: What it is.
        title: A few words.
        state: `unknown` where its record cannot be read, `missing` where there is none.
        details: All that is known of it.
    """

    id: str
    kind: Kind
    title: str
    state: State
    details: dict[str, Any]


class Link(Ref):
    """An edge: `child` was made from `parent`, which was its `role`."""

    child: str
    role: str
    parent: str


class Lineage(Ref):
    """Where a model comes from.

    Attributes:
        version: The version that was asked about.
        root: Id of its node.
        nodes: Each once; the root first.
        links: Edges from children to parents.
    """

    version: VersionRef
    root: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    @property
    def gaps(self) -> tuple[Node, ...]:
        """What is not known: beyond it there may be more."""
        return tuple(node for node in self.nodes if node.state != "known")


def trace(catalogue: Catalogue, version: VersionRef) -> Lineage:
    """Where a registered version comes from, after a look at what is new in the registry.

    Raises:
        SetupError: The registry does not answer, or the index cannot be used.
        LedgerError: The ledger cannot be read.
    """
    catalogue.refresh()
    return lineage_of(catalogue.index, version)


def lineage_of(index: Index, version: VersionRef) -> Lineage:
    """Where a version comes from, as far as the index knows.

    Raises:
        SetupError: The index cannot be used.
    """
    graph = index.ancestors(version.model.record)
    nodes: dict[str, Node] = {}
    links = [Link(child=edge.child, role=edge.role, parent=edge.parent) for edge in graph.edges]
    for artifact in graph.artifacts.values():
        nodes[artifact.digest] = _node(artifact)
    for artifact in graph.artifacts.values():
        for child, role, origin in _origins(index, artifact):
            nodes.setdefault(origin.id, origin)
            links.append(Link(child=child, role=role, parent=origin.id))
    return Lineage(
        version=version,
        root=version.model.record,
        nodes=tuple(nodes.values()),
        links=tuple(dict.fromkeys(links)),
    )


def _node(artifact: Artifact) -> Node:
    details: dict[str, Any] = {
        "stage": artifact.stage,
        "record": artifact.digest,
        "models": list(artifact.model_ids),
        "runs": list(artifact.run_ids),
        "versions": [_plain_version(held) for held in artifact.versions],
    }
    if artifact.facts:
        details |= {"content": artifact.facts["content"], "metrics": artifact.metrics}
    else:
        details["reason"] = artifact.reason
    return Node(
        id=artifact.digest,
        kind="model" if artifact.is_model else "report",
        title=artifact.role or "model",
        state=artifact.state,
        details=details,
    )


def _plain_version(held: Held) -> dict[str, Any]:
    now, ever = list(held.now), list(held.ever)
    return {"name": held.name, "version": held.number, "now": now, "ever": ever}


def _versions(node: Node) -> str:
    """`digits.edge version 3 @champion`, of each registered version."""
    return ", ".join(
        " ".join([f"{one['name']} version {one['version']}", *(f"@{name}" for name in one["now"])])
        for one in node.details["versions"]
    )


def _origins(index: Index, artifact: Artifact) -> Iterator[tuple[str, str, Node]]:
    """Child, role and node of what a model was made from besides other models."""
    data, facts = artifact.data, artifact.facts
    if data is None:
        return
    rows = _plain("rows", data.content, data.manifest, data.model_dump(exclude={"raw"}))
    raw = _plain("raw", data.raw, data.raw, {"raw": data.raw})
    yield artifact.digest, "rows", rows
    yield rows.id, "raw data", raw
    yield artifact.digest, "code", _code(facts)
    for kind in ("parameters", "environment"):
        digest = facts[kind]
        yield artifact.digest, kind, _plain(kind, digest, digest, index.document(digest))


def _plain(kind: Kind, key: str, digest: str, details: dict[str, Any]) -> Node:
    return Node(
        id=f"{kind}:{key}", kind=kind, title=digest[:DIGITS], state="known", details=details
    )


def _code(facts: dict[str, Any]) -> Node:
    commit, digest, clean = (facts[f"code_{name}"] for name in ("commit", "digest", "clean"))
    how = "as committed" if clean else "changed since" if commit else "outside git"
    return Node(
        id=f"code:{digest}:{commit}:{clean}",
        kind="code",
        title=f"{(commit or digest)[:DIGITS]} {how}",
        state="known",
        details={"commit": commit, "digest": digest, "clean": bool(clean)},
    )


def tree(lineage: Lineage) -> str:
    """The graph as a tree for the terminal; what is reached twice is drawn out once."""
    nodes = {node.id: node for node in lineage.nodes}
    below: dict[str, list[Link]] = {}
    for link in lineage.links:
        below.setdefault(link.child, []).append(link)
    seen: set[str] = set()

    def lines(at: str, indent: str) -> Iterator[str]:
        links = below.get(at, [])
        for link in links:
            last = link is links[-1]
            again = link.parent in seen
            seen.add(link.parent)
            said = _said(nodes[link.parent], link.role, again=again)
            yield f"{indent}{'└── ' if last else '├── '}{said}"
            if not again:
                yield from lines(link.parent, indent + ("    " if last else "│   "))

    return "\n".join([_said(nodes[lineage.root]), *lines(lineage.root, "")])


def _said(node: Node, role: str = "", *, again: bool = False) -> str:
    words = [role, node.title]
    if node.kind in MADE:
        words = [role, node.title if node.title != role else "", _versions(node)]
        words.append(f"record {node.id[:DIGITS]}")
    elif node.kind in {"parameters", "environment"} and not again:
        words.append(_short(node.details))
    if node.state != "known" and not again:
        words.append(_gap(node))
    return _one_line(" · ".join(word for word in words if word) + " (see above)" * again)


def _gap(node: Node) -> str:
    return f"{node.state.upper()}: {node.details['reason']}"


def _short(details: dict[str, Any]) -> str:
    """The plain values among parameters; what is nested, `--json` shows."""
    plain = {k: v for k, v in details.items() if not isinstance(v, dict | list | tuple)}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _one_line(text: str) -> str:
    """Names come from elsewhere: no control character reaches the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def svg(lineage: Lineage) -> str:
    """The graph as a picture that stands alone: from the model at the left to its origins.

    A model's parameters stand in its box; the pointer held over a box shows all details.
    """
    picture = _Picture(lineage)
    title = _escaped(f"Lineage of {lineage.version.name} version {lineage.version.version}")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{picture.width}" '
        f'height="{picture.height}" viewBox="0 0 {picture.width} {picture.height}" '
        'role="img" font-family="ui-monospace, monospace" font-size="11">'
    )
    ground = '<rect width="100%" height="100%" fill="white"/>'
    lines = [head, f"<title>{title}</title>", ground, *picture.edges(), *picture.boxes(), "</svg>"]
    return "\n".join(lines)


class _Picture:
    """Models in columns by their longest way from the root; what they were made from below."""

    def __init__(self, lineage: Lineage) -> None:
        nodes = {node.id: node for node in lineage.nodes}
        self.links = [link for link in lineage.links if nodes[link.parent].kind != "parameters"]
        self.parameters = {
            link.child: nodes[link.parent] for link in lineage.links if link not in self.links
        }
        self.nodes = {key: node for key, node in nodes.items() if node.kind != "parameters"}
        columns = self._columns([key for key, node in nodes.items() if node.kind in MADE])
        band = [key for kind in NAMES for key, node in nodes.items() if node.kind == kind]
        tallest = max(map(len, columns))
        below = MARGIN + tallest * ROW + ROW // 2 + BAND_GAP
        # Every other column half a row lower: an edge past a column runs between its boxes.
        self.places = {
            key: (MARGIN + at * COLUMN, MARGIN + row * ROW + at % 2 * (ROW // 2))
            for at, column in enumerate(columns)
            for row, key in enumerate(column)
        } | {key: (MARGIN + at * COLUMN, below) for at, key in enumerate(band)}
        self.width = 2 * MARGIN + max(len(columns), len(band)) * COLUMN - COLUMN_GAP
        self.height = below + BOX_HEIGHT + BAND_GAP + MARGIN

    def _columns(self, made: list[str]) -> list[list[str]]:
        """Ids of models by column; in each, near what they were linked from."""
        depth = dict.fromkeys(made, 0)
        links = [link for link in self.links if link.parent in depth]
        for _ in made:  # no way is longer than there are nodes
            for link in links:
                depth[link.parent] = max(depth[link.parent], depth[link.child] + 1)
        columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
        for key, at in depth.items():
            columns[at].append(key)
        rows: dict[str, float] = {}
        for column in columns:
            wanted = {
                key: [rows[link.child] for link in links if link.parent == key] for key in column
            }
            column.sort(key=lambda key: sum(wanted[key]) / max(len(wanted[key]), 1))
            rows |= {key: float(at) for at, key in enumerate(column)}
        return columns

    def edges(self) -> Iterator[str]:
        """Curves, with the role that a model was for its child."""
        for link in self.links:
            is_made = self.nodes[link.parent].kind in MADE
            yield (
                f'<path d="{self._curve(link)}" fill="none" '
                f'stroke="{"#1d4ed8" if is_made else "#9ca3af"}"/>'
            )
            if is_made:
                x, y = self.places[link.parent]
                yield (
                    f'<text x="{x - 6}" y="{y + BOX_HEIGHT // 2 - 5}" text-anchor="end" '
                    f'fill="#1d4ed8">{_escaped(link.role)}</text>'
                )

    def _curve(self, link: Link) -> str:
        (x, y), (to_x, to_y) = self.places[link.child], self.places[link.parent]
        if self.nodes[link.parent].kind in MADE:
            x, y, to_y, bend = x + BOX_WIDTH, y + BOX_HEIGHT // 2, to_y + BOX_HEIGHT // 2, 55
            return f"M{x} {y} C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"
        x, to_x, y = x + BOX_WIDTH // 2, to_x + BOX_WIDTH // 2, y + BOX_HEIGHT
        if self.nodes[link.child].kind in MADE:
            return f"M{x} {y} C{x} {y + BAND_GAP} {to_x} {to_y - BAND_GAP} {to_x} {to_y}"
        return f"M{x} {y} C{x} {y + BAND_GAP} {to_x} {y + BAND_GAP} {to_x} {y}"

    def boxes(self) -> Iterator[str]:
        """Boxes with a few lines each."""
        for key, node in self.nodes.items():
            x, y = self.places[key]
            edge = "#9ca3af" if node.state == "known" else "#b91c1c"
            dashes = "" if node.state == "known" else ' stroke-dasharray="5 3"'
            yield "<g>"
            yield f"<title>{_escaped(json.dumps(self._details(node), ensure_ascii=False))}</title>"
            yield (
                f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
                f'fill="{FILLS[node.kind]}" stroke="{edge}"{dashes}/>'
            )
            for at, line in enumerate(self._lines(node)):
                weight = ' font-weight="bold"' if not at else ""
                text = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"
                place = f'x="{x + 10}" y="{y + 18 + 16 * at}"'
                yield f"<text {place}{weight}>{_escaped(text)}</text>"
            yield "</g>"

    def _details(self, node: Node) -> dict[str, Any]:
        parameters = self.parameters.get(node.id)
        return node.details | ({"parameters": parameters.details} if parameters else {})

    def _lines(self, node: Node) -> list[str]:
        if node.kind not in MADE:
            lines = [NAMES[node.kind], node.title]
            return [*lines, _short(node.details)] if node.kind == "environment" else lines
        own = self.parameters.get(node.id)
        last = f"parameters {own.title}" if own else _gap(node)
        return [node.title, _versions(node), f"record {node.id[:DIGITS]}", last]


def _escaped(text: str) -> str:
    """XML holds no control characters, escaped or not."""
    return html.escape(_one_line(text))
