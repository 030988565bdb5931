import math
import subprocess
import sys

import pytest
import yaml

from flows.search import Point, Search, applied, hurried, points, shortened, space_of
from tasks.errors import CompressionError
from tasks.factorize import FactorizeParams
from tasks.factorizers.svd import Svd
from tasks.networks.text_transformer import TextTransformer
from tasks.params import load
from tasks.pruners.magnitude import Magnitude
from tasks.quantizers.float32 import Float32
from tasks.quantizers.static_int8 import StaticInt8
from tasks.settings import Settings
from tasks.weigh import Space
from tests.weighed import weighed

SPACE = Space(widths=(1.0, 0.5), precisions=(StaticInt8(), Float32()))
KILLED = """
import os, signal
from flows.search import Search
from tasks.settings import Settings
from tests.flows.test_search import SPACE
search = Search.resume(Settings(), "a study", SPACE, seed=0)
search.tell(search.propose()[0], None, 0.1)
search.propose()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def params(tmp_path, plain_params):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(plain_params))
    return load(tmp_path)


def with_space(params, **more):
    space = Space(widths=(1.0, 0.5), precisions=(StaticInt8(), Float32()), **more)
    return space, list(points(space))


def test_every_candidate_has_a_name_of_its_own(params):
    space, found = with_space(params, shallower=(0, 1), ranks=(None, 0.5))
    names = [point.name(space) for point in found]
    assert len(set(names)) == len(names) == 2 * 2 * 2 * 2 * 2
    assert found[0].name(space) == "w1 static_int8"
    assert "w0.5 d-1 k0.5 r0.5 float32" in names
    twice = Space(widths=(1.0,), precisions=(StaticInt8(), StaticInt8(per_channel=False)))
    named = {point.name(twice) for point in points(twice)}
    assert {"w1 static_int8-1", "w1 static_int8-2"} < named


def test_a_bare_budget_tries_halves_and_the_float_file(params):
    space = space_of(params)
    assert space.widths == (1.0, 0.75, 0.5)
    assert [method.plain()["name"] for method in space.precisions] == ["static_int8", "float32"]


def test_a_bare_budget_keeps_what_the_chain_says_of_pruning_and_factors(params):
    own = params.prune.method.model_copy(update={"keep_ratio": 0.25})
    update = {
        "prune": params.prune.model_copy(update={"method": own}),
        "factorize": FactorizeParams(method=Svd(keep_ratio=0.4)),
    }
    space = space_of(params.model_copy(update=update))
    assert (space.keep_ratios, space.ranks) == ((None, 0.25), (None, 0.4))


def test_a_bare_budget_leaves_out_widths_that_the_student_cannot_have(params):
    student = TextTransformer(width=48, heads=6)
    distill = params.distill.model_copy(update={"network": student})
    space = space_of(params.model_copy(update={"distill": distill}))
    assert space.widths == (1.0, 0.5)


def test_a_point_changes_what_it_names_and_nothing_else(params):
    space, _ = with_space(params, keep_ratios=(None, 0.25), ranks=(None, 0.5))
    as_is = Point(width=1.0, shallower=0, keep_ratio=None, rank=None, precision=1)
    found = applied(params, space, as_is)
    assert found.distill == params.distill
    assert (found.prune, found.factorize) == (None, None)
    assert found.quantize.method == Float32()
    small = Point(width=0.5, shallower=1, keep_ratio=0.25, rank=0.5, precision=0)
    found = applied(params, space, small)
    assert found.distill.network.widths == (8, 16)
    assert found.prune.method == params.prune.method.model_copy(update={"keep_ratio": 0.25})
    assert found.prune.recovery == params.prune.recovery
    assert found.factorize.method == Svd(keep_ratio=0.5)
    assert found.factorize.recovery.fit == params.distill.fit
    changed = {"distill", "prune", "factorize", "quantize"}
    for name in type(params).model_fields.keys() - changed:
        assert getattr(found, name) == getattr(params, name)


def test_a_chain_without_pruning_learns_it(params):
    space, _ = with_space(params)
    bare = params.model_copy(update={"prune": None})
    point = Point(width=1.0, shallower=0, keep_ratio=0.5, rank=None, precision=0)
    found = applied(bare, space, point)
    assert found.prune.method == Magnitude(keep_ratio=0.5)
    assert found.prune.recovery.losses == params.distill.losses


def test_what_the_student_cannot_be_is_refused(params):
    space, _ = with_space(params, shallower=(3,))
    with pytest.raises(CompressionError, match="one has to stay; 3 cannot go"):
        applied(params, space, next(points(space)))


def test_a_hurried_chain_takes_one_step_a_stage(params):
    found = hurried(params)
    assert (found.distill.fit.steps, found.prune.recovery.fit.steps) == (1, 1)
    assert found.distill.network == params.distill.network
    assert found.teach == params.teach


def test_a_shortened_chain_takes_a_share_of_the_steps_of_every_stage_of_the_student(params):
    untouched = params.prune.recovery.fit.model_copy(update={"steps": 0})
    recovery = params.prune.recovery.model_copy(update={"fit": untouched})
    tuned = params.quantize.model_copy(update={"finetune": params.prune.recovery})
    found = shortened(params.model_copy(update={"quantize": tuned}), 0.15)
    assert (found.distill.fit.steps, found.prune.recovery.fit.steps) == (12, 6)
    assert found.quantize.finetune.fit.steps == 6
    same = found.distill.model_copy(update={"fit": params.distill.fit})
    assert same == params.distill
    assert (found.teach, found.supervise) == (params.teach, params.supervise)
    assert shortened(params, 0.001).distill.fit.steps == 1
    without = params.prune.model_copy(update={"recovery": recovery})
    found = shortened(params.model_copy(update={"prune": without}), 0.5)
    assert found.prune.recovery.fit.steps == 0


# Proposals


@pytest.fixture
def search(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLMARK_PROJECT", str(tmp_path))
    return lambda: Search.resume(Settings(), "a study", SPACE, seed=0)


def test_every_point_is_proposed_once_and_the_student_as_it_is_first(search):
    found = search()
    seen = []
    while proposed := found.propose():
        trial, point = proposed
        seen.append(point)
        found.tell(trial, None if len(seen) % 3 else weighed("a"), 0.5)
    assert seen[0] == next(points(SPACE))
    assert sorted(map(str, seen)) == sorted(map(str, points(SPACE)))
    assert search().tried == seen


def goes_on(found):
    (ended,) = found.tried
    assert ended == next(points(SPACE))
    left = []
    while proposed := found.propose():
        left.append(proposed[1])
        found.tell(proposed[0], None, math.inf)
    assert len(left) == len(list(points(SPACE))) - 1
    assert ended not in left


def test_a_search_that_was_left_open_goes_on(search):
    first = search()
    first.tell(first.propose()[0], None, 0.1)
    first.propose()
    goes_on(search())


@pytest.mark.slow
def test_a_search_whose_process_was_killed_goes_on(search):
    command = [sys.executable, "-c", KILLED]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    goes_on(search())
