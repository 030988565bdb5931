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
        (rename("teach", 0, "fit", "steps", "stepz"), "'teach[0].fit.stepz'", "steps"),
        (
            rename("prune", "recovery", "fit", "learning_rate", "lerning_rate"),
            "'prune.recovery.fit.lerning_rate'",
            "learning_rate",
        ),
        (
            rename("teach", 0, "method", "pool_batch", "pol_batch"),
            "'teach[0].method.mixmatch.pol_batch'",
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
            rename("promote", "gates", 0, "margin", "magrin"),
            "'promote.gates[0].slices.magrin'",
            "margin",
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
        (assign("teach", 0, "members", 0), "'teach[0].members' is 0"),
        (assign("distill", "rows_share", 0.0), "'distill.rows_share' is 0.0"),
        (assign("distill", "rows_share", 1.5), "'distill.rows_share' is 1.5"),
        (assign("distill", "l1", -0.1), "'distill.l1' is -0.1"),
        (assign("distill", "cache_mb", -1), "'distill.cache_mb' is -1"),
        (assign("prepare", "unseen_classes", "3"), "'prepare.unseen_classes' is \"3\""),
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
        (assign("teach", 0, "method", "name", "mixmtch"), "'teach[0].method'", "mixmatch"),
        (assign("pretrain", "network", "name", "resnt"), "'pretrain.network'", "resnet"),
        (assign("distill", "losses", 0, "name", "soft_label"), "'distill.losses[0]'", None),
        (assign("quantize", "method", "name", "static_int4"), "'quantize.method'", "static_int8"),
        (assign("promote", "gates", 0, "name", "qualty"), "'promote.gates[0]'", "quality"),
        (assign("prepare", "modality", "name", "image"), "'prepare.modality'", "images"),
        (assign("distill", "combination", {"name": "maen"}), "'distill.combination'", "mean"),
        (
            assign("consult", [{"estimator": {"name": "logistic_regresion"}}]),
            "'consult[0].estimator'",
            "logistic_regression",
        ),
    ],
)
def test_an_unknown_method_is_answered_with_the_known_ones(write, change, where, guess):
    with pytest.raises(ParamsError) as caught:
        write(change)
    assert f"params.yaml: {where} has the unknown name '" in str(caught.value)
    assert f"; did you mean '{guess or 'soft_labels'}'? (known: " in str(caught.value)


def test_a_method_without_a_name_is_refused(write):
    with pytest.raises(ParamsError, match=r"'teach\[0\]\.method' needs a 'name'"):
        write(delete("teach", 0, "method", "name"))


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


# What the chain may leave out or take more of

LOGISTIC = {"estimator": {"name": "logistic_regression"}}


def together(*changes):
    def change(tree):
        for one in changes:
            one(tree)

    return change


def own_network(tree):
    tree["teach"][0]["network"] = tree["distill"]["network"]


def test_pretraining_and_pruning_may_be_left_out(write):
    found = write(together(assign("pretrain", None), assign("prune", None), own_network))
    assert found.pretrain is None
    assert found.prune is None
    assert found.teach[0].network == found.distill.network


def test_there_may_be_any_number_of_teachers(write):
    def several(tree):
        tree["teach"] *= 3
        tree["consult"] = [LOGISTIC, {"estimator": {**LOGISTIC["estimator"], "strength": 0.5}}]

    found = write(several)
    assert len(found.teach) == 3
    assert [entry.estimator.strength for entry in found.consult] == [1.0, 0.5]
    assert write(lambda tree: None).consult == ()


def test_an_estimator_may_teach_alone(write):
    found = write(together(assign("teach", []), assign("consult", [LOGISTIC])))
    assert found.teach == ()


def only_line(write, change):
    with pytest.raises(ParamsError) as caught:
        write(change)
    (line,) = str(caught.value).splitlines()
    return line


def test_no_teacher_at_all_is_refused(write):
    line = only_line(write, assign("teach", []))
    assert line.startswith("params.yaml: there is no teacher; add an entry to 'teach' or 'consult'")


def test_a_teacher_without_network_needs_an_encoder(write):
    line = only_line(write, together(assign("pretrain", None)))
    assert line.startswith("params.yaml: 'teach[0].network' is null")
    assert "'pretrain' is null" in line


def test_only_an_encoders_body_can_be_frozen(write):
    frozen = assign("teach", 0, "freeze_body", True)
    assert write(frozen).teach[0].freeze_body
    line = only_line(write, together(frozen, own_network))
    assert line.startswith("params.yaml: 'teach[0].freeze_body' is true")


def test_the_second_teacher_is_located_too(write):
    def second(tree):
        tree["teach"].append({**tree["teach"][0], "network": tree["distill"]["network"]})
        tree["pretrain"] = None

    assert "'teach[0].network'" in only_line(write, second)


# Methods for another modality than the data's

TEXT_NETWORK = {"name": "text_cnn"}


@pytest.mark.parametrize(
    ("change", "where", "which"),
    [
        (assign("distill", "network", TEXT_NETWORK), "distill.network", "text_cnn"),
        (assign("teach", 0, "network", TEXT_NETWORK), "teach[0].network", "text_cnn"),
        (assign("supervise", "network", TEXT_NETWORK), "supervise.network", "text_cnn"),
        (
            assign("prune", "recovery", "augmentation", {"name": "token_dropout"}),
            "prune.recovery.augmentation",
            "token_dropout",
        ),
        (
            assign("pretrain", "objective", {"name": "masked_language"}),
            "pretrain.objective",
            "masked_language",
        ),
        (
            assign("compare", {"distillations": {"words": {"network": TEXT_NETWORK}}}),
            "compare.distillations.words.network",
            "text_cnn",
        ),
        (
            assign("compare", {"controls": {"words": {"network": TEXT_NETWORK}}}),
            "compare.controls.words.network",
            "text_cnn",
        ),
    ],
)
def test_a_text_method_on_image_data_is_located(write, change, where, which):
    line = only_line(write, change)
    assert line == (
        f"params.yaml: '{where}' is '{which}', which takes text; the data is images "
        "(prepare.modality)"
    )


def test_image_methods_on_other_data_are_each_located(write):
    with pytest.raises(ParamsError) as caught:
        write(assign("prepare", "modality", {"name": "tables"}))
    lines = str(caught.value).splitlines()
    located = [line.split("'")[1] for line in lines]
    assert sorted(located) == [
        "distill.augmentation",
        "distill.network",
        "pretrain.augmentation",
        "pretrain.network",
        "prune.recovery.augmentation",
        "supervise.augmentation",
        "supervise.network",
        "teach[0].augmentation",
    ]
    assert all("takes images; the data is tables (prepare.modality)" in line for line in lines)


def mutual(**changes):
    """Puts `mutual` beside `distill`, with the same student."""

    def change(tree):
        tree["mutual"] = {**tree["distill"], "auxiliary": tree["distill"]["network"], **changes}

    return change


def test_mutual_learning_is_left_out_unless_it_is_asked_for(write):
    assert write(lambda tree: tree.pop("mutual", None)).mutual is None
    found = write(mutual(target_accuracy=0.9))
    assert found.mutual.auxiliary == found.mutual.network == found.distill.network
    assert found.mutual.target_accuracy == 0.9


def test_an_auxiliary_of_another_modality_is_located(write):
    line = only_line(write, mutual(auxiliary=TEXT_NETWORK))
    assert line.startswith("params.yaml: 'mutual.auxiliary' is 'text_cnn', which takes text")


def test_methods_for_any_modality_fit_every_one(write):
    def unaugmented(tree):
        for place in (tree["distill"], tree["supervise"], tree["prune"]["recovery"]):
            place["augmentation"] = {"name": "none"}

    assert not write(unaugmented).distill.augmentation.draws
