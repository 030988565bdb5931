import copy

import pytest
import yaml

from tasks.errors import ParamsError
from tasks.params import load


@pytest.fixture
def write(tmp_path, plain_params):
    """Writes the small project's parameters after a change, and loads them."""

    def attempt(change):
        tree = copy.deepcopy(plain_params)
        change(tree)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return load(tmp_path)

    return attempt


def rename(*path):
    """A change that misspells the last name of a path."""
    *parents, old, new = path

    def change(tree):
        for name in parents:
            tree = tree[name]
        tree[new] = tree.pop(old)

    return change


def assign(*path):
    """A change of one value."""
    *parents, last, value = path

    def change(tree):
        for name in parents:
            tree = tree[name]
        tree[last] = value

    return change


def delete(*path):
    *parents, last = path

    def change(tree):
        for name in parents:
            tree = tree[name]
        del tree[last]

    return change


def test_the_repositorys_own_parameters_are_fine(plain_params, write):
    found = write(lambda tree: None)
    assert found.project == "digits"
    assert found.prune.recovery.losses[0].name == "soft_labels"
    assert found.distill.fit.steps == plain_params["distill"]["fit"]["steps"]


def test_the_tree_is_frozen(write):
    with pytest.raises(ValueError, match="frozen"):
        write(lambda tree: None).compute.seed = 7


@pytest.mark.parametrize(
    ("change", "where", "guess"),
    [
        (rename("distill", "distil"), "'distil'", "distill"),
        (rename("compute", "seed", "sed"), "'compute.sed'", "seed"),
        (rename("teach", "fit", "steps", "stepz"), "'teach.fit.stepz'", "steps"),
        (
            rename("prune", "recovery", "fit", "learning_rate", "lerning_rate"),
            "'prune.recovery.fit.lerning_rate'",
            "learning_rate",
        ),
        (
            rename("teach", "method", "pool_batch", "pol_batch"),
            "'teach.method.mixmatch.pol_batch'",
            "pool_batch",
        ),
        (
            rename("distill", "losses", 0, "temperature", "temprature"),
            "'distill.losses[0].soft_labels.temprature'",
            "temperature",
        ),
        (
            rename("prune", "recovery", "losses", 0, "weight", "wieght"),
            "'prune.recovery.losses[0].soft_labels.wieght'",
            "weight",
        ),
        (
            rename("promote", "gates", 0, "alpha", "alhpa"),
            "'promote.gates[0].quality.alhpa'",
            "alpha",
        ),
    ],
)
def test_a_misspelt_name_is_located_and_guessed(write, change, where, guess):
    with pytest.raises(ParamsError) as caught:
        write(change)
    line = next(line for line in str(caught.value).splitlines() if "unknown parameter" in line)
    assert f"unknown parameter {where}; did you mean '{guess}'? (known: " in line


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (assign("distill", "fit", "steps", "many"), "'distill.fit.steps' is \"many\""),
        (assign("distill", "fit", "steps", 1.5), "'distill.fit.steps' is 1.5"),
        (assign("distill", "fit", "steps", True), "'distill.fit.steps' is true"),
        (assign("compute", "threads", 0), "'compute.threads' is 0"),
        (assign("compute", "device", "tpu"), "'compute.device' is \"tpu\""),
        (assign("distill", "losses", []), "'distill.losses' is []"),
        (assign("promote", "gates", []), "'promote.gates' is []"),
        (assign("project", "my digits"), "'project' is \"my digits\""),
        (assign("teach", None), "'teach' is null"),
    ],
)
def test_a_wrong_value_is_located_and_never_coerced(write, change, where):
    with pytest.raises(ParamsError) as caught:
        write(change)
    assert f"params.yaml: {where}: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("section", ["compute", "prepare", "distill", "evaluate", "promote"])
def test_a_missing_section_is_named(write, section):
    with pytest.raises(ParamsError, match=f"^params.yaml: '{section}' is missing$"):
        write(delete(section))


@pytest.mark.parametrize(
    ("change", "where", "guess"),
    [
        (assign("teach", "method", "name", "mixmtch"), "'teach.method'", "mixmatch"),
        (assign("pretrain", "network", "name", "resnt"), "'pretrain.network'", "resnet"),
        (assign("distill", "losses", 0, "name", "soft_label"), "'distill.losses[0]'", None),
        (assign("quantize", "method", "name", "static_int4"), "'quantize.method'", "static_int8"),
        (assign("promote", "gates", 0, "name", "qualty"), "'promote.gates[0]'", "quality"),
        (assign("prepare", "modality", "name", "image"), "'prepare.modality'", "images"),
    ],
)
def test_an_unknown_method_is_answered_with_the_known_ones(write, change, where, guess):
    with pytest.raises(ParamsError) as caught:
        write(change)
    assert f"params.yaml: {where} has the unknown name '" in str(caught.value)
    assert f"; did you mean '{guess or 'soft_labels'}'? (known: " in str(caught.value)


def test_a_method_without_a_name_is_refused(write):
    with pytest.raises(ParamsError, match=r"'teach.method' needs a 'name'"):
        write(delete("teach", "method", "name"))


def test_every_mistake_has_its_line(write):
    def change(tree):
        tree["compute"]["sed"] = 1
        tree["distill"]["batch_size"] = "big"
        del tree["evaluate"]

    with pytest.raises(ParamsError) as caught:
        write(change)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("params.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: }", "params.yaml is not YAML"),
        ("a: b: c", "params.yaml is not YAML"),
        ("", "holds NoneType, expected sections"),
        ("- 1\n- 2", "holds list, expected sections"),
        ("just words", "holds str, expected sections"),
        ("compute: {seed: 2026-01-01}", "params.yaml: "),
    ],
)
def test_a_file_that_is_no_tree_is_one_line(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message) as caught:
        load(tmp_path)
    if "YAML" in message:
        assert len(str(caught.value).splitlines()) == 1


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ParamsError, match="not YAML"):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"params.yaml is missing"):
        load(tmp_path)


def test_not_a_number_is_refused(write):
    with pytest.raises(ParamsError, match="learning_rate"):
        write(assign("distill", "fit", "learning_rate", float("nan")))
    with pytest.raises(ParamsError, match="weight_decay"):
        write(assign("distill", "fit", "weight_decay", float("inf")))
