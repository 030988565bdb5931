import copy
import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from tasks import networks, prune
from tasks.compute import laid_out
from tasks.consult import ConsultParams, consult
from tasks.distill import distill
from tasks.distillation import NetworkAnswers, distill_into
from tasks.errors import CompressionError, ParamsError
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.fit import Watch, fit
from tasks.networks import Classifier, Spec, count_macs, count_parameters
from tasks.networks.mlp import Mlp
from tasks.networks.resnet import ResNet
from tasks.prune import PruneParams, SparsifyParams, penalty, sparsity, zeros_held
from tasks.sections import parse
from tasks.stage import Work, stage
from tasks.tracking import payload_of

STUDENT = Spec(network=ResNet(widths=(16, 32), blocks=2), shape=(8, 8, 1), outputs=2)
FIT = {"steps": 6, "learning_rate": 0.01}
PLAIN = {
    "method": {"name": "magnitude"},
    "recovery": {
        "fit": FIT,
        "batch_size": 16,
        "views": 2,
        "augmentation": {"name": "affine", "rotation_degrees": 8.0, "shift_share": 0.05},
        "losses": [{"name": "soft_labels"}],
    },
}


def params(method="magnitude", **changes):
    method = method if isinstance(method, dict) else {"name": method}
    return parse(PruneParams, PLAIN | {"method": method} | changes, "prune")


class KilledError(Exception):
    """The process ends here."""


@dataclass(frozen=True)
class Bare(Work):
    """A stage's surroundings without a store: networks come from memory."""

    known: dict = field(default_factory=dict)

    def network(self, ref):
        spec, network = self.known[ref]
        return spec, self.compute.place(copy.deepcopy(network))

    def answering(self, ref):
        return NetworkAnswers(self.network(ref)[1])


@pytest.fixture(scope="module")
def known(build):
    return {"student": (STUDENT, build(STUDENT)), "teacher": (STUDENT, build(STUDENT, seed=3))}


@pytest.fixture
def pruning(rows, compute, known, tmp_path, monkeypatch):
    """`prune` without a store and the export: spec, network and metrics of what comes out."""

    def run(section, watch=None):
        kept = []
        monkeypatch.setattr(prune, "keep_classifier", lambda _f, *found: kept.append(found))
        work = Bare(rows, compute, tmp_path, watch or Watch(), None, known)
        torch.manual_seed(0)
        metrics = prune.prune.function(work, section, student="student", teacher="teacher")
        spec, network, _ = kept[0]
        return spec, network, metrics

    return run


def widths(network):
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


# What comes out


@pytest.mark.parametrize("name", prune.PRUNERS.methods)
def test_every_method_gives_a_network_that_its_spec_builds_again(name, pruning, known, rows):
    spec, network, metrics = pruning(params(name))
    rebuilt = spec.build()
    rebuilt.load_state_dict(network.state_dict())
    inputs, dense = torch.rand(5, 1, 8, 8), known["student"][1]
    plain = laid_out(network, torch.contiguous_format)
    assert torch.equal(rebuilt.eval()(inputs), plain(inputs))
    assert metrics["kept_parameters"] == count_parameters(network) / count_parameters(dense)
    assert metrics["kept_macs"] == count_macs(network, inputs) / count_macs(dense, inputs)
    assert metrics["validation_accuracy"] <= 1
    assert ("sparsity" in metrics) == (name == "unstructured")
    assert (metrics["kept_macs"] == 1) == (name == "unstructured")


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_the_same_run_gives_the_same_bits(name, pruning, state_digest):
    ends = [state_digest(pruning(params(name))[1]) for _ in range(2)]
    assert ends[0] == ends[1]


def test_magnitude_recovers_as_distillation_of_the_pruned_network_does(
    pruning, known, rows, compute, state_digest
):
    section = params()
    expected = copy.deepcopy(known["student"][1])
    section.method.prune(expected, torch.rand(2, 1, 8, 8))
    teacher = NetworkAnswers(compute.place(copy.deepcopy(known["teacher"][1])))
    compute.place(expected)
    distill_into(expected, [teacher], rows, section.recovery, compute, Watch())
    assert state_digest(pruning(section)[1]) == state_digest(expected)


def test_evidence_is_real_rows_and_what_the_teachers_say_of_them(pruning, rows, known, monkeypatch):
    seen = []
    monkeypatch.setattr(prune, "sensitivity", lambda _p, _n, _plan, found: seen.append(found) or [])
    pruning(params())
    (found,) = seen
    train = rows.train.encoding.to_network(torch.from_numpy(rows.train.inputs.copy()))
    assert len(found.inputs) == min(prune.EVIDENCE_ROWS, len(train))
    assert {row.numpy().tobytes() for row in found.inputs} <= {
        row.numpy().tobytes() for row in train
    }
    with torch.no_grad():
        expected = known["teacher"][1](found.inputs).softmax(1)
    torch.testing.assert_close(found.targets, expected)


def test_the_sensitivity_of_each_layer_is_written(pruning, tmp_path, known):
    pruning(params())
    found = json.loads((tmp_path / "sensitivity.json").read_text())
    layers = [name for name, m in known["student"][1].named_modules() if isinstance(m, nn.Conv2d)]
    assert {row["layer"] for row in found} == set(layers)
    assert {row["kept"] for row in found} == {8, 16}
    assert all(row["loss_after"] != row["loss_before"] for row in found)


# In several steps


@pytest.mark.parametrize("name", ["magnitude", "activation", "unstructured"])
def test_in_two_steps_the_same_goal_is_reached(name, pruning):
    (_, once, metrics), (spec, twice, both) = (pruning(params(name, iterations=n)) for n in (1, 2))
    assert widths(once) == widths(twice)
    assert spec.resized_as(twice) == spec
    for key in ("kept_parameters", "kept_macs", "sparsity"):
        assert metrics.get(key) == both.get(key)
    assert not torch.equal(once.head.bias, twice.head.bias)


def test_steps_lead_there_one_after_another(pruning, monkeypatch):
    seen = []

    def note(network, *_rest):
        seen.append(sorted({*widths(network)}))
        return {}

    monkeypatch.setattr(prune, "distill_into", note)
    pruning(params(iterations=2))
    assert seen == [[8, 24], [8, 16]]  # 16 and 32 times √½, to multiples of 8


def test_each_step_is_followed_by_a_whole_recovery(pruning):
    reports = []

    def report(at, steps, metrics):
        if metrics:
            reports.append((at, steps))

    sparsify = {"kind": "groups", "strength": 1e-3, "fit": FIT | {"steps": 4}}
    pruning(params(iterations=2, sparsify=sparsify), Watch(report))
    assert reports == [(at, 16) for at in range(1, 17)]


@pytest.mark.parametrize("at", [2, 7, 14])
def test_killed_and_started_again_it_ends_with_the_same_bits(at, pruning, state_digest, tmp_path):
    sparsify = {"kind": "bn_scale", "strength": 1e-3, "fit": FIT | {"steps": 4}}
    section = params("taylor", iterations=2, sparsify=sparsify)
    expected = state_digest(pruning(section)[1])
    checkpoint = tmp_path / "run.pt"

    def kill(done, _steps, metrics):
        if metrics and done == at:
            raise KilledError

    with pytest.raises(KilledError):
        pruning(section, Watch(kill, checkpoint, 0))
    assert list(tmp_path.glob("run*.pt"))
    seen = []
    again = Watch(
        lambda done, _steps, metrics: seen.append(done) if metrics else None, checkpoint, 0
    )
    assert state_digest(pruning(section, again)[1]) == expected
    assert len(seen) < 16  # what was done before was not done again
    assert {path.name for path in tmp_path.glob("run*.pt")} == {
        "run-sparsify.pt",
        "run-iteration-1.pt",
        "run-iteration-2.pt",
    }


# Zeros


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.7}, {"weight_decay": 0.3}])
def test_zeros_survive_the_recovery_and_the_others_learn(changes, pruning, known):
    recovery = PLAIN["recovery"] | {"fit": FIT | changes}
    method = {"name": "unstructured", "sparsity": 0.6}
    _, pruned, _ = pruning(params(method, recovery=recovery | {"fit": FIT | {"steps": 0}}))
    _, recovered, metrics = pruning(params(method, recovery=recovery))
    assert sparsity(recovered) == pytest.approx(0.6, abs=1e-4)
    assert metrics["sparsity"] == sparsity(recovered)
    for (name, before), after in zip(
        pruned.named_parameters(), recovered.parameters(), strict=True
    ):
        assert torch.equal(before == 0, after == 0) or not name.endswith("weight")
        assert not torch.equal(before, after)
    assert not any(parameter._backward_hooks for parameter in recovered.parameters())


def test_zeros_are_let_go_afterwards(compute):
    network = Classifier(nn.Flatten(), 4, 2)
    with torch.no_grad():
        network.head.weight[0] = 0
    inputs, labels = torch.rand(8, 4), torch.randint(2, (8,))
    section = parse(PruneParams, PLAIN, "prune").recovery.fit

    def step(_at, _generator):
        return nn.functional.cross_entropy(network(inputs), labels)

    with zeros_held(network):
        fit(network, step, section, compute)
    assert not network.head.weight[0].any()
    assert network.head.bias[0] != 0
    fit(network, step, section, compute)
    assert network.head.weight[0].all()


# Sparsity before pruning


def test_penalties_are_those_of_the_papers():
    spec = Spec(network=Mlp(widths=(8,)), shape=(5,), outputs=3)
    torch.manual_seed(0)
    network, example = spec.build().eval(), torch.rand(2, 5)
    with torch.no_grad():
        network.body[1].weight.copy_(torch.randn(8))
    first, scale, head = (
        one.weight.detach().double() for one in (network.body[0], network.body[1], network.head)
    )
    how = SparsifyParams(kind="bn_scale", strength=0.5, fit=params().recovery.fit)
    found = penalty(how, network, example)()
    assert float(found.detach()) == pytest.approx(0.5 * float(scale.abs().sum()))
    found = penalty(how.model_copy(update={"kind": "groups"}), network, example)()
    size = first.square().sum(1) + scale.square() + head.square().sum(0)
    assert float(found.detach()) == pytest.approx(0.5 * float(size.sqrt().sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["bn_scale", "groups"])
def test_what_is_penalised_gets_smaller_and_all_of_it_learns(kind, rows, compute, known):
    sizes = {}
    for strength in (1e-9, 0.05):
        network = copy.deepcopy(known["student"][1])
        how = SparsifyParams(kind=kind, strength=strength, fit=params().recovery.fit)
        extra = penalty(how, network, torch.rand(2, 1, 8, 8))
        compute.place(network)
        teacher = NetworkAnswers(known["teacher"][1])
        recovery = params().recovery
        distill_into(network, [teacher], rows, recovery, compute, Watch(), extra)
        sizes[strength] = float(extra().detach()) / strength
    assert sizes[0.05] < 0.99 * sizes[1e-9]


def test_a_penalty_on_what_is_not_there_is_refused():
    network = Classifier(nn.Flatten(), 4, 2).eval()
    for kind, needs in (("bn_scale", "batch normalisation"), ("groups", "channels that may go")):
        how = SparsifyParams(kind=kind, strength=1.0, fit=params().recovery.fit)
        with pytest.raises(CompressionError, match=f"sparsify of kind '{kind}' needs {needs}"):
            penalty(how, network, torch.rand(2, 4))


def test_the_student_is_trained_with_the_penalty_first(pruning):
    sparsify = {"kind": "groups", "strength": 0.05, "fit": FIT}
    without, with_it = (pruning(params(sparsify=one))[1] for one in (None, sparsify))
    assert widths(without) == widths(with_it)
    sizes = [sum(p.square().sum() for p in one.parameters()) for one in (without, with_it)]
    assert sizes[1] < sizes[0]


# As a stage


@pytest.mark.slow
def test_the_pruned_student_is_stored_with_its_sensitivity(bench):
    teacher = stage("teacher")(consult.function)._run(
        bench.run, ConsultParams(estimator=LogisticRegression())
    )
    short = {"fit": bench.params.distill.fit.model_copy(update={"steps": 2})}
    student = stage("student")(distill.function)._run(
        bench.run, bench.params.distill.model_copy(update=short), teacher=teacher
    )
    section = params(iterations=2)
    ref = stage("pruned")(prune.prune.function)._run(
        bench.run, section, student=student, teacher=teacher
    )
    folder = payload_of(bench.tracking.fetch(ref).folder)
    spec, _ = networks.load(folder)
    assert spec.sizes
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "network.json",
        "schema.json",
        "sensitivity.json",
        "weights.safetensors",
    }
    (run,) = bench.runs(key=ref.key)
    assert 0 < run.data.metrics["kept_macs"] < 1
    assert run.data.metrics["kept_parameters"] < 1
    assert not list((bench.root / ".stillmark" / "checkpoints").glob("*"))


# Parameters


def test_by_default_one_step_and_no_penalty():
    assert (params().iterations, params().sparsify) == (1, None)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"iterations": 0}, "prune.iterations"),
        ({"sparsify": {"kind": "l2", "strength": 1.0, "fit": FIT}}, "prune.sparsify.kind"),
        ({"sparsify": {"kind": "groups", "strength": 0.0, "fit": FIT}}, "prune.sparsify.strength"),
        ({"sparsify": {"kind": "groups", "strength": 1.0}}, "prune.sparsify.fit"),
        (
            {"method": {"name": "unstructured", "sparsity": 1.0}},
            "prune.method.unstructured.sparsity",
        ),
        ({"method": {"name": "taylor", "keep_macs": 0.0}}, "prune.method.taylor.keep_macs"),
    ],
)
def test_mistakes_are_told_with_their_place(changes, path):
    with pytest.raises(ParamsError, match=path.replace(".", r"\.")):
        parse(PruneParams, PLAIN | changes, "prune")
