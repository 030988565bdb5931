import json
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tasks import networks
from tasks.errors import ArtifactError
from tasks.networks import Spec, count_macs, count_parameters, resize
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet
from tasks.pruners.magnitude import Magnitude

# Loads every folder that it is told and prints a digest of the weights and one of the outputs.
PROGRAM = """
import json, sys
from hashlib import sha256
from pathlib import Path
import torch
from tasks.networks import load

torch.set_num_threads(1)
found = {}
for folder in sys.argv[1:]:
    spec, network = load(Path(folder))
    side, _, channels = spec.shape
    inputs = torch.linspace(0, 1, 2 * channels * side * side).view(2, channels, side, side)
    weights = sha256()
    for name, tensor in sorted(network.state_dict().items()):
        weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    with torch.no_grad():
        outputs = sha256(network(inputs).numpy().tobytes()).hexdigest()
    found[folder] = [weights.hexdigest(), outputs, network.training]
print(json.dumps(found))
"""

GREY = (8, 8, 1)
CASES = {
    "convnet": Spec(network=ConvNet(widths=(16, 32, 32)), shape=GREY, outputs=10),
    "resnet": Spec(network=ResNet(widths=(16, 32, 64)), shape=(16, 16, 3), outputs=5),
    "deep": Spec(network=ResNet(widths=(16, 32), blocks=2), shape=GREY, outputs=3),
    "dropout": Spec(network=ConvNet(widths=(16, 32), dropout=0.3), shape=GREY, outputs=3),
}


def even_inputs(spec, count=2):
    side, _, channels = spec.shape
    return torch.linspace(0, 1, count * channels * side**2).view(count, channels, side, side)


@pytest.fixture(scope="module")
def stored(build, tmp_path_factory):
    """Every case, dense and pruned, in a folder of its own: (folder, spec, network)."""
    found = {}
    for name, spec in CASES.items():
        for pruned in (False, True):
            network, case = build(spec), spec
            if pruned:
                Magnitude(keep_ratio=0.5).prune(network, even_inputs(spec))
                case = spec.resized_as(network)
            folder = tmp_path_factory.mktemp(name)
            networks.save(folder, case, network)
            found[name, pruned] = folder, case, network
    body = Spec(network=ConvNet(widths=(8, 8)), shape=GREY, outputs=0)
    folder = tmp_path_factory.mktemp("body")
    network = build(body)
    networks.save(folder, body, network)
    found["body", False] = folder, body, network
    return found


def test_every_stored_network_is_bit_equal_in_a_fresh_process(stored, python, state_digest):
    done = python("-c", PROGRAM, *[folder for folder, _, _ in stored.values()])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for folder, spec, network in stored.values():
        with torch.no_grad():
            outputs = sha256(network(even_inputs(spec)).numpy().tobytes()).hexdigest()
        assert found[str(folder)] == [state_digest(network), outputs, False]


@pytest.mark.parametrize("name", CASES)
def test_a_pruned_network_has_the_attributes_of_its_tensors(stored, name):
    folder, spec, _ = stored[name, True]
    loaded_spec, loaded = networks.load(folder)
    assert loaded_spec == spec
    assert spec.sizes
    for module in loaded.modules():
        if isinstance(module, nn.Conv2d):
            assert tuple(module.weight.shape[:2]) == (module.out_channels, module.in_channels)
        elif isinstance(module, nn.BatchNorm2d):
            assert len(module.weight) == len(module.running_var) == module.num_features
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_pruned_network_can_be_trained_and_pruned_again(stored, name):
    _, network = networks.load(stored[name, True][0])
    network.train()(even_inputs(CASES[name])).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_loading_a_pruned_network_is_stable_over_rounds(stored, tmp_path):
    folder, _, _ = stored["resnet", True]
    networks.save(tmp_path, *networks.load(folder))
    for name in (networks.SPEC_FILE, networks.WEIGHTS_FILE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("network", [ConvNet(widths=(32,)), ResNet(widths=(16, 32))])
def test_dropout_drops_its_share_of_the_features_while_training_only(network):
    plain, width = network.body(GREY)
    body, _ = network.model_copy(update={"dropout": 0.25}).body(GREY)
    body.load_state_dict(plain.state_dict())
    inputs = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    kept, expected = body.train()(inputs), plain.train()(inputs)
    assert kept.shape == (200, width)
    dropped = (kept == 0) & (expected > 0)
    assert float(dropped.sum() / (expected > 0).sum()) == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(kept[~dropped], expected[~dropped] / 0.75)
    assert torch.equal(body.eval()(inputs), plain.eval()(inputs))


def test_channels_last_weights_are_stored_by_value(build, tmp_path, state_digest):
    spec = CASES["convnet"]
    network = build(spec)
    expected = state_digest(network)
    networks.save(tmp_path, spec, network.to(memory_format=torch.channels_last))
    assert state_digest(networks.load(tmp_path)[1]) == expected


def test_nothing_is_pickled(stored):
    folder, _, network = stored["convnet", False]
    assert {path.name for path in folder.iterdir()} == {"network.json", "weights.safetensors"}
    with safe_open(folder / "weights.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(network.state_dict())


def test_a_dense_network_has_no_sizes(build):
    spec = CASES["resnet"]
    assert spec.resized_as(build(spec)).sizes == {}


@pytest.mark.parametrize("name", ["body.99.weight", "head.wight", "nothing"])
def test_an_unknown_tensor_in_sizes_is_an_artifact_error(name):
    spec = CASES["convnet"].model_copy(update={"sizes": {name: (8, 1, 3, 3)}})
    with pytest.raises(ArtifactError, match=f"'{name}'"):
        spec.build()


def test_a_module_without_a_rule_is_refused():
    with pytest.raises(ArtifactError, match="no rule to resize a GroupNorm"):
        resize(nn.Sequential(nn.GroupNorm(2, 4)), {"0.weight": (2,)})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (nn.Conv1d(6, 8, 3), nn.Conv1d(4, 5, 3)),
        (nn.Conv1d(6, 8, 3, groups=2), nn.Conv1d(4, 6, 3, groups=2)),
        (nn.Conv2d(6, 8, 3), nn.Conv2d(4, 5, 3)),
        (nn.Linear(6, 8), nn.Linear(4, 5)),
        (nn.Embedding(9, 6), nn.Embedding(9, 4)),
        (nn.LayerNorm(6), nn.LayerNorm(4)),
        (nn.BatchNorm1d(6), nn.BatchNorm1d(4)),
        (nn.BatchNorm2d(6), nn.BatchNorm2d(4)),
    ],
    ids=repr,
)
def test_a_resized_module_is_one_that_was_built_so(before, after):
    state = after.state_dict()
    changed = {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if tensor.shape != before.state_dict()[name].shape
    }
    resize(before, changed)
    before.load_state_dict(state)
    assert repr(before) == repr(after)
    inputs = torch.ones(2, 4, 5)
    if isinstance(after, nn.Embedding):
        inputs = torch.ones(2, 3, dtype=torch.long)
    elif isinstance(after, nn.Linear | nn.LayerNorm):
        inputs = torch.ones(2, 3, 4)
    elif isinstance(after, nn.Conv2d | nn.BatchNorm2d):
        inputs = torch.ones(2, 4, 5, 5)
    assert torch.equal(before.eval()(inputs), after.eval()(inputs))


@pytest.mark.parametrize("damage", ["weights", "spec", "sizes"])
def test_stored_files_that_do_not_fit_are_artifact_errors(stored, tmp_path, damage):
    folder, _, _ = stored["convnet", True]
    for name in (networks.SPEC_FILE, networks.WEIGHTS_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if damage == "weights":
        (tmp_path / networks.WEIGHTS_FILE).write_bytes(b"cut")
    elif damage == "spec":
        (tmp_path / networks.SPEC_FILE).write_bytes(b"{")
    else:
        spec = json.loads((tmp_path / networks.SPEC_FILE).read_bytes()) | {"sizes": {}}
        (tmp_path / networks.SPEC_FILE).write_text(json.dumps(spec))
    with pytest.raises(ArtifactError):
        networks.load(tmp_path)


def test_fresh_weights_follow_from_the_global_seed(state_digest):
    digests = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        digests.append(state_digest(CASES["resnet"].build()))
    assert digests[0] == digests[1] != digests[2]


def test_without_outputs_a_network_gives_its_features(stored):
    _, spec, network = stored["body", False]
    with torch.no_grad():
        features = network(even_inputs(spec))
    assert features.shape == (2, spec.network.body(GREY)[1])


def test_counting_parameters():
    assert count_parameters(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))) == 16 + 8


def test_macs_are_counted_by_hand(build, convnet_spec):
    # Places of the output, input channels, 9 weights, output channels; then the head.
    by_hand = 64 * 1 * 9 * 8 + 16 * 8 * 9 * 16 + 16 * 16 * 9 * 16 + 64 * 10
    assert count_macs(build(convnet_spec), even_inputs(convnet_spec, 4)) == by_hand
    grouped = nn.Conv2d(8, 8, 3, groups=8, padding=1)
    assert count_macs(grouped, torch.rand(2, 8, 5, 5)) == 25 * 9 * 8
    flat = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Linear(7, 2))
    assert count_macs(flat, torch.rand(2, 4, 9)) == 7 * 4 * 3 * 6 + 6 * 7 * 2
    assert count_macs(nn.Embedding(9, 4), torch.ones(2, 3, dtype=torch.long)) == 0


def test_counting_leaves_no_trace(build, convnet_spec):
    network = build(convnet_spec)
    first = count_macs(network, even_inputs(convnet_spec))
    assert count_macs(network, even_inputs(convnet_spec)) == first
    assert all(parameter.grad is None for parameter in network.parameters())
