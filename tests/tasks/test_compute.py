from dataclasses import replace

import pytest
import torch
from torch import nn

from tasks.compute import Compute, ComputeParams
from tasks.errors import SetupError

CPU = torch.device("cpu")


def draw(generator):
    return torch.rand(8, generator=generator).tolist()


def test_a_generator_follows_from_seed_and_purpose(compute):
    assert draw(compute.generator("a")) == draw(compute.generator("a"))
    others = [
        draw(compute.generator("b")),
        draw(compute.generator("a", "b")),
        draw(Compute(1, 1, CPU, bf16=False).generator("a")),
    ]
    assert draw(compute.generator("a")) not in others


def test_a_generator_does_not_depend_on_the_global_seed(compute):
    torch.manual_seed(1)
    first = draw(compute.generator("a"))
    torch.manual_seed(2)
    assert draw(compute.generator("a")) == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(SetupError, match="set it to 'auto'"):
        Compute.resolve(ComputeParams(device="cuda"))
    assert Compute.resolve(ComputeParams(device="auto")).device == CPU


@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True)])
def test_a_stated_precision_holds(precision, bf16):
    found = Compute.resolve(ComputeParams(device="cpu", precision=precision, seed=7, threads=3))
    assert (found.bf16, found.seed, found.threads) == (bf16, 7, 3)
    with found.autocast():
        product = torch.rand(4, 4) @ torch.rand(4, 4)
    assert product.dtype == (torch.bfloat16 if bf16 else torch.float32)


def test_the_first_member_is_the_run_itself_and_no_two_share_a_seed(compute):
    assert compute.member(0) is compute
    members = [compute.member(number) for number in range(50)]
    assert len({member.seed for member in members}) == 50
    assert all(0 <= member.seed < 2**53 for member in members)  # what ComputeParams allows
    first = [draw(member.generator("a")) for member in members[:3]]
    assert first[0] != first[1] != first[2] != first[0]


def test_a_member_differs_in_its_seed_alone_which_follows_from_the_runs():
    run = Compute(7, 3, CPU, bf16=True)
    torch.manual_seed(1)
    member = run.member(2)
    torch.manual_seed(2)
    assert run.member(2) == member
    assert replace(member, seed=7) == run
    assert replace(run, seed=8).member(2).seed != member.seed


def test_start_makes_the_process_repeatable():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        compute = Compute(5, 2, CPU, bf16=False)
        compute.start()
        first = torch.rand(3)
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        compute.start()
        assert torch.equal(torch.rand(3), first)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode=False)
        torch.set_rng_state(state)


def test_place_lays_networks_out_channels_last(compute):
    placed = compute.place(nn.Conv2d(4, 4, 3))
    assert placed.weight.is_contiguous(memory_format=torch.channels_last)


def test_describe_states_what_decides_bits():
    plain = Compute(3, 2, CPU, bf16=False).describe()
    assert (plain["seed"], plain["threads"], plain["device"]) == (3, 2, "cpu")
    assert plain["precision"] == "fp32"
    assert plain["instruction_set"]
    assert Compute(3, 2, CPU, bf16=True).describe()["precision"] == "bf16"
    assert Compute(3, 1, CPU, bf16=False).describe() != plain
