import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import tasks
from tasks.compute import Compute
from tasks.errors import TrainingError
from tasks.fit import FitParams, Watch, averaged, fit, never, rate_at, save_atomically

# A training run with everything that a checkpoint must hold: batches from the loop's generator,
# dropout from the global one, running statistics, averaged weights, a momentum. It sends itself a
# signal, SIGKILL by default, in the step that it is told.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from tasks.compute import Compute
from tasks.fit import FitParams, Watch, fit

kill_at, checkpoint, out = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
number, every_seconds = (int(word) for word in sys.argv[4:6] or (signal.SIGKILL, 0))
optimizer = sys.argv[6] if sys.argv[6:] else "adamw"
compute = Compute(3, 1, torch.device("cpu"), bf16=False)
compute.start()
data = torch.randn(64, 4, generator=compute.generator("data"))
labels = (data[:, 0] * data[:, 1] > 0).long()
network = nn.Sequential(
    nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
)

def step(at, generator):
    if at == kill_at:
        os.kill(os.getpid(), number)
    print(at, flush=True)
    index = torch.randint(64, (16,), generator=generator)
    return functional.cross_entropy(network(data[index]), labels[index])

watch = Watch(checkpoint=checkpoint, every_seconds=every_seconds)
params = FitParams(steps=30, learning_rate=0.05, ema_decay=0.9, optimizer=optimizer)
fit(network, step, params, compute, watch)
save_file(network.state_dict(), out)
"""


def start(*arguments):
    environment = os.environ | {
        "PYTHONPATH": str(Path(tasks.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, error = process.communicate(timeout=60)
    return process.returncode, [int(line) for line in out.split()], error


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, optimizer):
    how = (int(signal.SIGKILL), 0, optimizer)
    whole = start(-1, tmp_path / "whole.pt", tmp_path / "whole.safetensors", *how)
    killed = start(17, tmp_path / "run.pt", tmp_path / "run.safetensors", *how)
    assert end(killed)[:2] == (-signal.SIGKILL, list(range(17)))
    assert (tmp_path / "run.pt").exists()
    assert not (tmp_path / "run.safetensors").exists()
    # What a kill in the middle of writing leaves must not be read.
    (tmp_path / "run.partial").write_bytes(b"half a checkpoint")
    code, steps, error = end(start(-1, tmp_path / "run.pt", tmp_path / "run.safetensors", *how))
    assert (code, steps) == (0, list(range(17, 30))), error
    code, steps, error = end(whole)
    assert (code, steps) == (0, list(range(30))), error
    resumed = (tmp_path / "run.safetensors").read_bytes()
    assert resumed == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_waits_for_the_end_of_a_step_and_leaves_a_checkpoint(tmp_path, number):
    """None was due; started again, it ends with the same bits as one that nobody disturbed."""
    place = tmp_path / "run.pt"
    whole = start(-1, tmp_path / "whole.pt", tmp_path / "whole.safetensors")
    code, steps, error = end(start(17, place, tmp_path / "run.safetensors", int(number), 3600))
    # Python ends with 1 where Ctrl-C comes to a program that was given as text.
    assert code == (-number if number == signal.SIGTERM else 1), error
    assert steps == list(range(18))  # the 17th was finished
    assert torch.load(place, weights_only=True)["at"] == 18
    code, steps, error = end(start(-1, place, tmp_path / "run.safetensors"))
    assert (code, steps) == (0, list(range(18, 30))), error
    assert end(whole)[0] == 0
    resumed = (tmp_path / "run.safetensors").read_bytes()
    assert resumed == (tmp_path / "whole.safetensors").read_bytes()


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(compute, small_disk, caplog):
    """The last whole one stays, no part of another does, and one line says it."""
    place = small_disk / "run.pt"
    whole = {"steps": 20, "ema_decay": 0.8}
    with pytest.raises(Stop):
        small_run(compute, place, 5, **whole)
    kept = place.read_bytes()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(512))
    assert small_run(compute, place, **whole) == small_run(compute, **whole)
    assert place.read_bytes() == kept
    assert {path.name for path in small_disk.iterdir()} == {"run.pt", "filler"}
    (line,) = caplog.messages
    assert line.startswith(f"no space is left for checkpoints in {small_disk}: training goes on")
    filler.unlink()
    assert small_run(compute, place, **whole) == small_run(compute, **whole)


def test_the_wall_clock_decides_nothing(compute, tmp_path, monkeypatch):
    def jumps():
        pytest.fail("somebody asked what time of day it is")

    monkeypatch.setattr("time.time", jumps)
    monkeypatch.setattr("time.time_ns", jumps)
    small_run(compute, tmp_path / "run.pt")


class Stop(Exception):  # noqa: N818 - not an error
    pass


def small_run(compute, checkpoint=None, stop_at=None, **changes):
    """Twenty steps of a small network on the digits; returns its weights as bytes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    digits, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(digits[:256] / 16).float(), torch.tensor(labels[:256])

    def step(at, generator):
        if at == stop_at:
            raise Stop
        index = torch.randint(256, (32,), generator=generator)
        return functional.cross_entropy(network(inputs[index]), targets[index])

    params = FitParams(**({"steps": 20, "learning_rate": 0.01} | changes))
    fit(network, step, params, compute, Watch(checkpoint=checkpoint, every_seconds=0))
    return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())


@pytest.mark.parametrize("ema_decay", [None, 0.8])
@pytest.mark.parametrize("stops", [[1], [19], [5, 6, 13]])
def test_any_number_of_interruptions_change_no_bit(compute, tmp_path, ema_decay, stops):
    for stop in stops:
        with pytest.raises(Stop):
            small_run(compute, tmp_path / "run.pt", stop, ema_decay=ema_decay)
    resumed = small_run(compute, tmp_path / "run.pt", ema_decay=ema_decay)
    assert resumed == small_run(compute, ema_decay=ema_decay)


def test_a_finished_run_started_again_trains_nothing(compute, tmp_path):
    first = small_run(compute, tmp_path / "run.pt", ema_decay=0.8)
    assert small_run(compute, tmp_path / "run.pt", stop_at=0, ema_decay=0.8) == first


def test_another_seed_gives_other_weights(compute):
    other = Compute(9, 1, compute.device, bf16=False)
    assert small_run(other) != small_run(compute)


def test_no_checkpoint_is_written_before_its_time(compute, tmp_path):
    network = nn.Linear(1, 1)
    watch = Watch(checkpoint=tmp_path / "run.pt", every_seconds=3600)
    fit(network, lambda *_: network(torch.ones(1, 1)).mean(), steps(5), compute, watch)
    assert not (tmp_path / "run.pt").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_run_on_cuda_that_was_interrupted_changes_no_bit(tmp_path):
    cuda = Compute(0, 1, torch.device("cuda"), bf16=False)

    def run(checkpoint=None, stop_at=None):
        torch.manual_seed(0)
        network = cuda.place(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)))

        def step(at, generator):
            if at == stop_at:
                raise Stop
            return network(torch.rand(16, 4, generator=generator).to("cuda")).square().mean()

        watch = Watch(checkpoint=checkpoint, every_seconds=0)
        fit(network, step, steps(12, ema_decay=0.8), cuda, watch)
        return b"".join(one.cpu().numpy().tobytes() for one in network.state_dict().values())

    with pytest.raises(Stop):
        run(tmp_path / "run.pt", 7)
    assert run(tmp_path / "run.pt") == run()


def steps(count, **more):
    return FitParams(**({"steps": count, "learning_rate": 0.1} | more))


def test_the_loss_falls_and_the_network_learns(compute):
    digits, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(digits / 16).float(), torch.tensor(labels)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    losses = []

    def step(_at, generator):
        index = torch.randint(1000, (64,), generator=generator)
        return functional.cross_entropy(network(inputs[index]), targets[index])

    watch = Watch(progress=lambda at, count, metrics: losses.append(metrics["loss"]))
    fit(network, step, steps(200, learning_rate=0.01), compute, watch)
    right = (network(inputs[1000:]).argmax(1) == targets[1000:]).float().mean()
    assert losses[-1] < losses[0] / 4
    assert right > 0.85
    assert not network.training


def test_no_steps_leave_the_network_as_it_is(compute):
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    fit(network, lambda *_: pytest.fail("a step"), steps(0, ema_decay=0.5), compute)
    assert torch.equal(network.weight, before)
    assert not network.training


# The learning rate


@given(
    count=st.integers(1, 500), rate=st.floats(1e-5, 1.0), warmup=st.floats(0, 0.9), data=st.data()
)
def test_the_rate_is_a_linear_warm_up_and_a_cosine(count, rate, warmup, data):
    params = FitParams(steps=count, learning_rate=rate, warmup_share=warmup)
    at = data.draw(st.integers(0, count - 1))
    rising = round(count * warmup)
    if at < rising:
        expected = np.linspace(0, rate, rising + 1)[at + 1]
    else:
        expected = rate / 2 * (1 + np.cos(np.pi * (at - rising) / (count - rising)))
    assert rate_at(at, params) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_rate_peaks_after_the_warm_up_and_ends_near_nothing():
    params = FitParams(steps=100, learning_rate=2.0, warmup_share=0.1)
    rates = [rate_at(at, params) for at in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) * 0.2)
    assert rates[10] == 2.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001


def test_the_optimizer_is_adamw_at_those_rates(compute):
    params = FitParams(steps=12, learning_rate=0.1, weight_decay=0.2, warmup_share=0.25)
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    w, b = (p.detach().double().numpy().copy() for p in network.parameters())
    fit(network, lambda *_: network(torch.ones(4, 3)).square().mean(), params, compute)
    theta, m, v = np.append(w, b), np.zeros(4), np.zeros(4)
    for at in range(12):
        gradient = np.full(4, 2 * theta.sum())
        theta = theta * (1 - rate_at(at, params) * 0.2)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        corrected = m / (1 - 0.9 ** (at + 1)), v / (1 - 0.999 ** (at + 1))
        theta -= rate_at(at, params) * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    found = torch.cat([p.flatten() for p in network.parameters()]).detach().numpy()
    np.testing.assert_allclose(found, theta, rtol=1e-4, atol=1e-6)


def test_sgd_takes_nesterovs_momentum_at_those_rates(compute):
    params = FitParams(
        steps=12, learning_rate=0.01, weight_decay=0.2, warmup_share=0.25, optimizer="sgd"
    )
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    w, b = (p.detach().double().numpy().copy() for p in network.parameters())
    fit(network, lambda *_: network(torch.ones(4, 3)).square().mean(), params, compute)
    theta, velocity = np.append(w, b), np.zeros(4)
    for at in range(12):
        gradient = np.full(4, 2 * theta.sum()) + 0.2 * theta
        velocity = 0.9 * velocity + gradient
        theta = theta - rate_at(at, params) * (gradient + 0.9 * velocity)
    found = torch.cat([p.flatten() for p in network.parameters()]).detach().numpy()
    np.testing.assert_allclose(found, theta, rtol=1e-4, atol=1e-6)


# Averaged weights


def test_the_average_decays_over_the_weights_after_each_step(compute):
    network = nn.Linear(2, 1)
    seen = []

    def step(at, _generator):
        if at:
            seen.append(network.weight.detach().clone())
        return network(torch.ones(1, 2)).square().mean()

    params = FitParams(steps=10, learning_rate=0.1, ema_decay=0.7)
    last = {}
    watch = Watch(progress=lambda *_: last.update(weight=network.weight.detach().clone()))
    fit(network, step, params, compute, watch)
    seen.append(last["weight"])
    average = seen[0]
    for weight in seen[1:]:
        average = 0.7 * average + 0.3 * weight
    torch.testing.assert_close(network.weight.detach(), average)
    assert not torch.allclose(average, seen[-1])


def test_running_statistics_are_averaged_too(compute):
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))

    def step(at, _generator):
        return network(torch.tensor([[0.0], [2.0 * at]])).square().mean()

    fit(network, step, steps(6, ema_decay=0.9), compute)
    mean, average = 0.0, None
    for at in range(6):
        mean = 0.9 * mean + 0.1 * at
        average = mean if average is None else 0.9 * average + 0.1 * mean
    assert network[0].running_mean.item() == pytest.approx(average, rel=1e-5)


# Losses that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(compute, value):
    network = nn.Linear(1, 1)

    def step(at, _generator):
        return network(torch.ones(1, 1)).sum() * (value if at == 3 else 1.0)

    with pytest.raises(TrainingError, match=r"at step 4; lower the stage's learning_rate"):
        fit(network, step, steps(20), compute)


@pytest.mark.parametrize("count", [400, 4000])
def test_the_step_that_is_named_is_the_one_that_went_wrong(compute, count):
    network = nn.Linear(1, 1)

    def step(at, _generator):
        return network(torch.ones(1, 1)).sum() * (math.nan if at >= 3 else 1.0)

    with pytest.raises(TrainingError, match=r"at step [34];"):
        fit(network, step, steps(count), compute)


def test_a_broken_state_is_not_kept_as_a_checkpoint(compute, tmp_path):
    network = nn.Linear(1, 1)

    def step(at, _generator):
        return network(torch.ones(1, 1)).sum() * (math.nan if at >= 3 else 1.0)

    watch = Watch(checkpoint=tmp_path / "run.pt", every_seconds=0)
    with pytest.raises(TrainingError):
        fit(network, step, steps(400), compute, watch)
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in state["network"].values())


# Reports


def test_reports_hold_loss_and_scores_of_a_network_in_evaluation_mode(compute):
    network = nn.Linear(1, 1)
    reports, modes = [], []

    def score():
        modes.append(network.training)
        return {"accuracy": 0.5}

    def step(_at, _generator):
        assert network.training
        return network(torch.ones(1, 1)).square().sum()

    watch = Watch(progress=lambda at, count, metrics: reports.append((at, count, set(metrics))))
    fit(network, step, steps(130), compute, watch, score)
    assert 30 <= len(reports) <= 50
    assert reports[-1] == (130, 130, {"loss", "accuracy"})
    assert modes == [False] * len(reports)


def test_a_named_watch_has_a_checkpoint_of_its_own(tmp_path):
    watch = Watch(checkpoint=tmp_path / "run.pt", every_seconds=3)
    names = {watch.named(name).checkpoint for name in ("a", "b")} | {watch.checkpoint}
    assert len(names) == 3
    assert watch.named("a").every_seconds == 3
    assert Watch().named("a").checkpoint is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "deep" / "run.pt"
    save_atomically({"at": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"at": lambda: 2}, path)
    assert torch.load(path, weights_only=True) == {"at": 1}


# What learns beside the network


def pair_run(compute, checkpoint=None, stop_at=None):
    """A network whose loss goes through a module beside it, with a running mean of its own."""
    torch.manual_seed(0)
    network = nn.Linear(3, 4)
    beside = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))

    def step(at, generator):
        if at == stop_at:
            raise Stop
        assert beside.training
        index = torch.randint(32, (8,), generator=generator)
        return (beside(network(inputs[index])) - inputs[index].sum(1, keepdim=True)).square().mean()

    watch = Watch(checkpoint=checkpoint, every_seconds=0)
    params = FitParams(steps=15, learning_rate=0.05, ema_decay=0.7)
    fit(network, step, params, compute, watch, beside=beside.eval())
    return [
        {name: tensor.clone() for name, tensor in module.state_dict().items()}
        for module in (network, beside)
    ]


def same(first, second):
    return all(
        torch.equal(one[name], other[name])
        for one, other in zip(first, second, strict=True)
        for name in one
    )


def test_a_module_beside_the_network_learns_with_it(compute):
    torch.manual_seed(0)
    nn.Linear(3, 4)
    before = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)).state_dict()
    _, after = pair_run(compute)
    for name, tensor in after.items():
        assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("stop", [1, 8, 14])
def test_an_interruption_changes_no_bit_of_either(compute, tmp_path, stop):
    with pytest.raises(Stop):
        pair_run(compute, tmp_path / "run.pt", stop)
    assert same(pair_run(compute, tmp_path / "run.pt"), pair_run(compute))


def test_what_is_beside_is_not_averaged(compute):
    """It ends with its last weights; the network with the mean of its own."""
    network, beside = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    last = {}

    def step(_at, _generator):
        return (beside(network(torch.ones(1, 1))) - 3).square().sum()

    def keep(*_):
        last.update(network=network.weight.item(), beside=beside.weight.item())

    fit(network, step, steps(10, ema_decay=0.9), compute, Watch(progress=keep), beside=beside)
    assert beside.weight.item() == last["beside"]
    assert network.weight.item() != pytest.approx(last["network"], abs=1e-3)


def test_parameters_that_are_kept_fixed_are_not_touched(compute):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].requires_grad_(requires_grad=False)
    before = network[0].weight.clone()
    params = steps(5, weight_decay=0.5)
    fit(network, lambda *_: network(torch.ones(1, 2)).square().sum(), params, compute)
    assert torch.equal(network[0].weight, before)


# An average that a step reads


def reading_run(compute, checkpoint=None, stop_at=None, *, reads=True):
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    params = FitParams(steps=14, learning_rate=0.1, ema_decay=0.8)
    average = averaged(network, params)
    seen = []

    def step(at, _generator):
        if at == stop_at:
            raise Stop
        with torch.no_grad():
            said = average(torch.ones(1, 2)) if reads else torch.zeros(1, 1)
        seen.append(float(said))
        return (network(torch.ones(1, 2)) - 1).square().sum() + said.sum() * 0

    watch = Watch(checkpoint=checkpoint, every_seconds=0)
    chosen = {"average": average} if reads else {}
    fit(network, step, params, compute, watch, **chosen)
    return seen, [network.state_dict()]


def test_a_step_can_read_the_average_that_the_loop_keeps(compute):
    seen, ends = reading_run(compute)
    assert len(set(seen)) == 14
    _, plain = reading_run(compute, reads=False)
    assert same(ends, plain)


def test_an_average_that_is_read_survives_an_interruption(compute, tmp_path):
    with pytest.raises(Stop):
        reading_run(compute, tmp_path / "run.pt", 6)
    seen, ends = reading_run(compute, tmp_path / "run.pt")
    whole, expected = reading_run(compute)
    assert seen == whole[6:]
    assert same(ends, expected)


def test_without_a_decay_there_is_no_average():
    assert averaged(nn.Linear(1, 1), steps(1)) is None


# Ending early


def stopped_run(compute, stop=never, checkpoint=None, fails_at=None, count=100):
    """A quadratic that comes down to 0; its loss is what is reported."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    reports = []

    def step(at, _generator):
        if at == fails_at:
            raise Stop
        return network(torch.ones(1, 1)).square().sum()

    def report(at, _count, metrics):
        reports.append((at, metrics["loss"]))

    watch = Watch(report, checkpoint, 0, stop)
    params = FitParams(steps=count, learning_rate=0.01, ema_decay=0.6)
    done = fit(network, step, params, compute, watch)
    return done, reports, [network.state_dict()]


def under(limit):
    return lambda _at, metrics: metrics["loss"] < limit


def test_a_loop_ends_at_the_first_report_that_suffices(compute):
    done, every, _ = stopped_run(compute)
    assert done == 100
    limit = every[len(every) // 2][1]
    wanted = next(at for at, loss in every if loss < limit)
    done, reports, ends = stopped_run(compute, under(limit))
    assert done == wanted < 100
    assert reports == [report for report in every if report[0] <= wanted]
    assert not same(ends, stopped_run(compute)[2])


def test_it_is_asked_after_every_report_with_the_steps_done(compute):
    asked = []

    def stop(at, metrics):
        asked.append((at, metrics["loss"]))
        return False

    _, reports, _ = stopped_run(compute, stop)
    assert asked == reports


def test_a_loop_that_ended_early_keeps_its_averaged_weights(compute):
    network = nn.Linear(1, 1, bias=False)
    seen = []

    def step(at, _generator):
        if at:
            seen.append(network.weight.item())
        return network(torch.ones(1, 1)).square().sum()

    stop = Watch(progress=lambda *_: None, stop=lambda at, _: at == 6)
    last = {}
    watch = replace(stop, progress=lambda *_: last.update(weight=network.weight.item()))
    assert fit(network, step, steps(40, ema_decay=0.7), compute, watch) == 6
    seen.append(last["weight"])
    average = seen[0]
    for weight in seen[1:]:
        average = 0.7 * average + 0.3 * weight
    assert network.weight.item() == pytest.approx(average, rel=1e-5)
    assert not network.training


@pytest.mark.parametrize("fails_at", [1, 9, 18])
def test_an_interrupted_loop_ends_early_where_it_would_have(compute, tmp_path, fails_at):
    done, reports, ends = stopped_run(compute, under(0.05))
    assert fails_at < done < 100
    with pytest.raises(Stop):
        stopped_run(compute, under(0.05), tmp_path / "run.pt", fails_at)
    again = stopped_run(compute, under(0.05), tmp_path / "run.pt")
    assert again[0] == done
    assert again[1] == [report for report in reports if report[0] > fails_at]
    assert same(again[2], ends)


def test_a_loop_that_ended_early_and_is_started_again_stays_ended(compute, tmp_path):
    done, _, ends = stopped_run(compute, under(0.05), tmp_path / "run.pt")
    again = stopped_run(compute, under(0.05), tmp_path / "run.pt", fails_at=done)
    assert again[0] == done
    assert again[1] == []
    assert same(again[2], ends)


def test_no_loop_ends_early_unless_it_is_told_to():
    assert not never(3, {"loss": 0.0})
    assert Watch().stop is never
