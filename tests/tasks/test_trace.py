import json
from xml.etree import ElementTree

import pytest

from tasks.catalogue import Catalogue
from tasks.settings import Settings
from tasks.trace import Lineage, svg, trace, tree

NAME = "digits.edge"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def catalogue(bench):
    with Catalogue.of(Settings()) as made:
        yield made


@pytest.fixture
def family(bench, toy):
    """Encoder; teacher and student of it, the student of the teacher too; edge of the student."""
    encoder = toy.make(bench, "good", 1)
    teacher = toy.make(bench, "good", 2, encoder=encoder)
    student = toy.make(bench, "good", 3, encoder=encoder, teacher=teacher)
    edge = toy.make(bench, "good", 4, student=student)
    version = bench.tracking.register(NAME, edge, {})
    bench.tracking.set_alias(version, "champion")
    return encoder, teacher, student, edge, version


def parsed(drawn):
    return ElementTree.fromstring(drawn)  # noqa: S314 - our own


def nodes_of(lineage, kind):
    return {node.id: node for node in lineage.nodes if node.kind == kind}


def test_the_graph_reaches_back_to_data_code_parameters_and_environment(bench, family, catalogue):
    encoder, teacher, student, edge, version = family
    lineage = trace(catalogue, version)
    assert lineage.version == version
    assert lineage.root == edge.record == lineage.nodes[0].id
    models = nodes_of(lineage, "model")
    assert set(models) == {one.record for one in (encoder, teacher, student, edge)}
    links = {(link.child, link.role, link.parent) for link in lineage.links}
    assert links >= {
        (edge.record, "student", student.record),
        (student.record, "teacher", teacher.record),
        (student.record, "encoder", encoder.record),
        (teacher.record, "encoder", encoder.record),
    }
    record = bench.tracking.record_of(edge.model_id, edge.record)
    (rows,) = nodes_of(lineage, "rows").values()
    assert rows.details["manifest"] == bench.run.data.manifest
    (raw,) = nodes_of(lineage, "raw").values()
    assert raw.details == {"raw": bench.run.data.raw}
    assert (rows.id, "raw data", raw.id) in links
    (code,) = nodes_of(lineage, "code").values()
    assert code.details == record.code.model_dump()
    (environment,) = nodes_of(lineage, "environment").values()
    assert environment.details == record.environment
    assert len(nodes_of(lineage, "parameters")) == 4
    (own,) = (
        one.parent for one in lineage.links if (one.child, one.role) == (edge.record, "parameters")
    )
    assert nodes_of(lineage, "parameters")[own].details == {"quality": "good", "salt": 4}
    for kind, key in (("rows", rows.id), ("code", code.id), ("environment", environment.id)):
        assert {(one, kind, key) for one in models} <= links
    assert lineage.gaps == ()
    assert Lineage.model_validate_json(lineage.model_dump_json()) == lineage
    json.dumps(lineage.model_dump(mode="json"))


def test_every_edge_has_two_ends_and_no_node_stands_twice(family, catalogue):
    lineage = trace(catalogue, family[-1])
    ids = [node.id for node in lineage.nodes]
    assert len(ids) == len(set(ids))
    assert {end for link in lineage.links for end in (link.child, link.parent)} == set(ids)
    assert len(lineage.links) == len(set(lineage.links))


def test_what_was_made_meanwhile_is_seen(bench, toy, family, catalogue):
    trace(catalogue, family[-1])
    later = toy.make(bench, "fair", 9, teacher=family[1])
    version = bench.tracking.register("digits.student", later, {})
    assert len(nodes_of(trace(catalogue, version), "model")) == 3


def test_the_tree_draws_each_out_once(family, catalogue):
    encoder, _, student, edge, version = family
    lines = tree(trace(catalogue, version)).splitlines()
    assert lines[0] == f"edge · {NAME} version 1 @champion · record {edge.record[:12]}"
    assert lines[1].startswith("├── student · edge · record")
    assert lines[1].endswith(student.record[:12])
    marked = [line for line in lines if encoder.record[:12] in line]
    assert len(marked) == 2
    assert [line.endswith("(see above)") for line in marked] == [False, True]
    assert sum("raw data · raw.dir" in line for line in lines) == 1
    assert sum("salt 4" in line for line in lines) == 1
    assert lines[-1].startswith("└── environment")
    branches = [line.replace("│", " ").find("─") for line in lines[1:]]
    assert all(at % 4 == 1 for at in branches)


def test_what_cannot_be_read_says_so(bench, family, catalogue):
    encoder, *_, version = family
    (bench.files(encoder) / "record.json").write_text("{")
    lineage = trace(catalogue, version)
    (gap,) = lineage.gaps
    assert (gap.id, gap.state) == (encoder.record, "unknown")
    assert encoder.model_id in gap.details["reason"]
    assert "UNKNOWN: the record of" in tree(lineage)
    assert "UNKNOWN" in svg(lineage)


def test_a_version_without_a_record_is_one_node(bench, toy, family, catalogue):
    lost = family[-1].model_copy(
        update={"model": family[-1].model.model_copy(update={"record": "0" * 64})}
    )
    lineage = trace(catalogue, lost)
    (node,) = lineage.nodes
    assert (node.id, node.state) == ("0" * 64, "missing")
    assert "MISSING: no record of it is stored" in tree(lineage)
    parsed(svg(lineage))


def boxes(root):
    names = ("x", "y", "width", "height")
    return [
        tuple(int(rect.get(name)) for name in names)
        for rect in root.iterfind(f".//{SVG}g/{SVG}rect")
    ]


def test_the_picture_shows_every_node_and_none_covers_another(family, catalogue):
    lineage = trace(catalogue, family[-1])
    root = parsed(svg(lineage))
    drawn = boxes(root)
    assert len(drawn) == len(lineage.nodes) - len(nodes_of(lineage, "parameters"))
    width, height = int(root.get("width")), int(root.get("height"))
    for at, (x, y, wide, high) in enumerate(drawn):
        assert x >= 0
        assert x + wide <= width
        assert y >= 0
        assert y + high <= height
        for x2, y2, *_ in drawn[:at]:
            assert abs(x - x2) >= wide or abs(y - y2) >= high
    text = " ".join(root.itertext())
    for node in lineage.nodes:
        assert node.title[:12] in text
    paths = root.findall(f"{SVG}path")
    hidden = [link for link in lineage.links if link.role == "parameters"]
    assert len(paths) == len(lineage.links) - len(hidden)


def test_parent_models_stand_to_the_right_and_origins_below(family, catalogue):
    lineage = trace(catalogue, family[-1])
    kinds = {node.id: node.kind for node in lineage.nodes}
    drawn = [link for link in lineage.links if kinds[link.parent] != "parameters"]
    for link, path in zip(drawn, parsed(svg(lineage)).iterfind(f"{SVG}path"), strict=True):
        words = path.get("d").replace("M", "").replace("C", "").split()
        (x, y), (to_x, to_y) = map(int, words[:2]), map(int, words[-2:])
        if kinds[link.parent] == "model":
            assert x < to_x
        elif kinds[link.child] == "model":
            assert y < to_y


def test_names_from_elsewhere_do_no_harm(family, catalogue):
    lineage = trace(catalogue, family[-1])
    evil = '</svg><script>alert("1")</script>\x1b[2J\x00\n'
    root, *rest = lineage.nodes
    bad = root.model_copy(update={"title": evil, "details": root.details | {evil: evil}})
    changed = lineage.model_copy(update={"nodes": (bad, *rest)})
    drawn = svg(changed)
    assert "<script" not in drawn
    parsed(drawn)
    assert len(tree(changed).splitlines()) == len(tree(lineage).splitlines())
    assert "\x1b" not in tree(changed)
