import pytest
import torch

from tasks import networks, teach
from tasks.compute import Compute
from tasks.fit import Watch
from tasks.pretrain import pretrain
from tasks.rows import Rows
from tasks.stage import Work, stage


@pytest.fixture
def untaught(bench, tmp_path, monkeypatch):
    """`teach` without steps and without the export; returns what it would have stored."""
    kept = {}

    def keep(_folder, spec, network, _rows):
        kept.update(spec=spec, network=network)

    monkeypatch.setattr(teach, "keep_classifier", keep)
    compute = Compute.resolve(bench.run.compute)
    rows = Rows(bench.root / "prepared")
    work = Work(rows, compute, tmp_path, Watch(), bench.tracking)

    def run(changes, **inputs):
        compute.start()
        fit = bench.params.teach.fit.model_copy(update={"steps": 0})
        params = bench.params.teach.model_copy(update={"fit": fit, **changes})
        metrics = teach.teach.function(work, params, **inputs)
        return kept["spec"], kept["network"], metrics

    return run


@pytest.fixture
def encoder(bench):
    """A pretrained body, after two steps."""
    fit = bench.params.pretrain.fit.model_copy(update={"steps": 2})
    params = bench.params.pretrain.model_copy(update={"fit": fit})
    return stage("encoder")(pretrain.function)._run(bench.run, params)


def test_the_teacher_starts_from_the_encoder(bench, untaught, encoder):
    origin, body = networks.load(bench.tracking.fetch(encoder).folder / "model")
    spec, network, metrics = untaught({}, encoder=encoder)
    assert spec.network == origin.network
    assert spec.outputs == 3
    expected = body.body.state_dict()
    assert expected
    for name, tensor in network.body.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert network.head.out_features == 3
    assert 0 <= metrics["validation_accuracy"] <= 1


def test_a_network_of_its_own_is_trained_from_scratch(bench, untaught):
    own = bench.params.distill.network
    spec, network, _ = untaught({"network": own})
    assert spec.network == own
    torch.manual_seed(bench.run.compute.seed)
    fresh = spec.build().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in network.state_dict().items())


def test_neither_is_an_error(untaught):
    with pytest.raises(ValueError, match="needs an encoder"):
        untaught({})


def test_the_method_gets_shown_labels_the_pool_and_the_share_done(bench, untaught):
    rows = Rows(bench.root / "prepared")
    seen = []

    class Spy:
        def loss(self, network, *, labelled, pool, share_done, generator):
            seen.append((len(labelled), int(labelled.labels.min()), len(pool), share_done))
            return sum(parameter.sum() for parameter in network.parameters()) * 0.0

    fit = replace_steps(bench.params.teach.fit, 4)
    untaught({"network": bench.params.distill.network, "method": Spy(), "fit": fit})
    shown = len(rows.train.labelled)
    assert [share for *_, share in seen] == [0.0, 0.25, 0.5, 0.75]
    assert {row[:3] for row in seen} == {(shown, 0, len(rows.train))}
    assert 0 < shown < len(rows.train)


def replace_steps(fit, steps):
    return fit.model_copy(update={"steps": steps})
