import pytest
import torch

from tasks import networks, teach
from tasks.compute import Compute
from tasks.errors import ParamsError
from tasks.fit import Watch
from tasks.pretrain import pretrain
from tasks.rows import Rows
from tasks.stage import Work, stage
from tasks.teachers import Lesson
from tasks.teachers.mean_teacher import MeanTeacher
from tasks.teachers.supervised import Supervised


@pytest.fixture
def entry(bench):
    """The first entry of section `teach`."""
    return bench.params.teach[0]


@pytest.fixture
def teaching(bench, entry, tmp_path, monkeypatch):
    """`teach` without the export; returns what it would have stored."""
    kept = {}

    def keep(_folder, spec, network, _rows):
        kept.update(spec=spec, network=network)

    monkeypatch.setattr(teach, "keep_classifier", keep)
    compute = Compute.resolve(bench.run.compute)
    rows = Rows(bench.root / "prepared")
    work = Work(rows, compute, tmp_path, Watch(), bench.tracking)

    def run(params, **inputs):
        compute.start()
        metrics = teach.teach.function(work, params, **inputs)
        return kept["spec"], kept["network"], metrics

    return run


@pytest.fixture
def untaught(entry, teaching):
    """The same without steps."""

    def run(changes, **inputs):
        changes = {"fit": fit_of(entry, steps=0)} | changes
        return teaching(entry.model_copy(update=changes), **inputs)

    return run


@pytest.fixture
def taught(bench, entry, teaching):
    """The weights of a small network after three steps of a method."""
    fit = fit_of(entry, steps=3)

    def run(**changes):
        plain = {"network": bench.params.distill.network, "method": Supervised(), "fit": fit}
        return [teaching(one)[1].state_dict() for one in members(entry, plain | changes)]

    return run


@pytest.fixture
def encoder(bench):
    """A pretrained body, after two steps."""
    fit = bench.params.pretrain.fit.model_copy(update={"steps": 2})
    params = bench.params.pretrain.model_copy(update={"fit": fit})
    return stage("encoder")(pretrain.function)._run(bench.run, params)


def fit_of(entry, **changes):
    return entry.fit.model_copy(update=changes)


def members(entry, changes):
    return entry.model_copy(update=changes).each()


def equal(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


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


class Spy:
    """A method whose lesson notes what it is given, and teaches nothing."""

    def __init__(self):
        self.settings, self.lessons, self.shares = [], [], []

    def lesson(self, setting):
        self.settings.append(setting)
        self.lessons.append(SpyLesson(setting, self.shares))
        return self.lessons[-1]


class SpyLesson(Lesson):
    def __init__(self, setting, shares):
        super().__init__(setting)
        self.shares = shares
        self.head = torch.nn.Linear(1, 1, bias=False)
        self.start = self.head.weight.detach().clone()

    def forward(self, share_done, generator):
        self.shares.append(share_done)
        nothing = sum(parameter.sum() for parameter in self.setting.network.parameters()) * 0.0
        return nothing + self.head.weight.square().sum()


def test_the_method_gets_shown_labels_the_pool_and_the_share_done(bench, entry, untaught):
    rows, spy = Rows(bench.root / "prepared"), Spy()
    fit = fit_of(entry, steps=4)
    untaught({"network": bench.params.distill.network, "method": spy, "fit": fit})
    (setting,) = spy.settings
    shown = len(rows.train.labelled)
    assert spy.shares == [0.0, 0.25, 0.5, 0.75]
    assert (len(setting.labelled), len(setting.pool)) == (shown, len(rows.train))
    assert setting.labelled.labels.min() == 0
    assert 0 < shown < len(rows.train)


def test_the_method_gets_the_very_weights_that_the_loop_averages(bench, entry, untaught):
    spy, own = Spy(), bench.params.distill.network
    untaught({"network": own, "method": spy, "fit": fit_of(entry, steps=3, ema_decay=0.5)})
    untaught({"network": own, "method": spy, "fit": fit_of(entry, steps=3, ema_decay=None)})
    assert spy.settings[0].average.n_averaged == 3
    assert spy.settings[1].average is None


def test_what_the_lesson_brings_learns_beside_the_network(bench, entry, untaught):
    spy = Spy()
    own, fit = bench.params.distill.network, fit_of(entry, steps=3)
    untaught({"network": own, "method": spy, "fit": fit})
    assert spy.lessons[0].head.weight.abs() < spy.lessons[0].start.abs() - 1e-4


# A frozen body


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_frozen_body_stays_as_it_is_and_the_head_learns(
    bench, entry, teaching, untaught, encoder, ema_decay
):
    body = networks.load(bench.tracking.fetch(encoder).folder / "model")[1].body.state_dict()
    start = untaught({"freeze_body": True}, encoder=encoder)[1].head.weight.detach().clone()
    changes = {
        "method": Supervised(),
        "freeze_body": True,
        "fit": fit_of(entry, steps=5, ema_decay=ema_decay),
    }
    network = teaching(entry.model_copy(update=changes), encoder=encoder)[1]
    assert any("running_mean" in name for name in body)
    assert equal(network.body.state_dict(), body)
    assert (network.head.weight - start).abs().max() > 1e-3


def test_a_body_that_is_not_frozen_learns(bench, entry, teaching, encoder):
    body = networks.load(bench.tracking.fetch(encoder).folder / "model")[1].body.state_dict()
    changes = {"method": Supervised(), "fit": fit_of(entry, steps=5)}
    network = teaching(entry.model_copy(update=changes), encoder=encoder)[1]
    assert not equal(network.body.state_dict(), body)


# Members


def test_members_differ_and_the_first_is_the_one_that_is_alone(taught):
    (alone,) = taught()
    first, second, third = taught(members=3)
    assert equal(first, alone)
    assert not equal(second, first)
    assert not equal(third, second)
    assert not equal(third, first)


def test_a_member_trained_again_has_the_same_bits(taught):
    assert equal(taught(members=2)[1], taught(members=2)[1])


def test_members_that_start_alike_draw_other_batches(bench, entry, untaught):
    spies = [Spy(), Spy()]
    for member, spy in enumerate(spies):
        untaught({"network": bench.params.distill.network, "method": spy, "member": member})
    seeds = {spy.settings[0].pool.compute.generator("fit").initial_seed() for spy in spies}
    assert len(seeds) == 2


# Methods through the stage


def test_the_mean_teacher_learns_through_the_stage(bench, entry, teaching):
    method = MeanTeacher(labelled_batch=16, pool_batch=32, pool_weight=5.0)
    changes = {
        "network": bench.params.distill.network,
        "method": method,
        "fit": fit_of(entry, steps=60, ema_decay=0.9),
    }
    network = teaching(entry.model_copy(update=changes))[1]
    rows = Rows(bench.root / "prepared").open_oracle()
    inputs = rows.encoding.to_network(torch.from_numpy(rows.inputs.copy()))
    right = (network(inputs).argmax(1).numpy() == rows.labels).mean()
    assert right > 0.8


def test_the_mean_teacher_without_averaged_weights_is_refused(bench, untaught, entry):
    fit = fit_of(entry, steps=1, ema_decay=None)
    with pytest.raises(ParamsError, match=r"fit\.ema_decay is null; set it"):
        untaught({"network": bench.params.distill.network, "method": MeanTeacher(), "fit": fit})
