import pytest
import torch

from tasks import networks
from tasks.errors import ArtifactError, CompressionError, ParamsError
from tasks.networks import Spec, count_macs
from tasks.networks.resnet import ResNet
from tasks.networks.text_transformer import TextTransformer
from tasks.pruners import PRUNERS
from tasks.pruners.depth import Depth, residual_blocks

DEEP = Spec(network=ResNet(widths=(8, 16), blocks=3), shape=(8, 8, 3), outputs=4)
LAYERS = Spec(network=TextTransformer(width=16, layers=3), shape=(6, 40), outputs=3)


def idle(network, *paths):
    """Makes blocks of a residual network add nothing."""
    with torch.no_grad():
        for path in paths:
            norm = network.get_submodule(f"{path}.residual.4")
            norm.weight.zero_()
            norm.bias.zero_()
    return network


def test_blocks_with_a_plain_shortcut_and_layers_can_go(trained, evidence_of):
    for spec, expected in (
        (DEEP, ["body.1", "body.2", "body.3", "body.5", "body.6"]),
        (LAYERS, ["body.layers.0", "body.layers.1", "body.layers.2"]),
    ):
        assert residual_blocks(trained(spec), evidence_of(spec).example) == expected


@pytest.mark.parametrize("path", ["body.2", "body.6"])
def test_a_block_that_adds_nothing_is_the_one_that_goes(trained, evidence_of, path):
    network, evidence = idle(trained(DEEP), path), evidence_of(DEEP)
    with torch.no_grad():
        expected = network(evidence.inputs)
        Depth().prune(network, evidence.inputs)
        assert DEEP.resized_as(network).skipped == (path,)
        assert torch.equal(network(evidence.inputs), expected)


def test_the_layer_whose_removal_changes_the_answers_least_goes(trained, evidence_of):
    evidence, changes = evidence_of(LAYERS), {}
    with torch.no_grad():
        dense = trained(LAYERS)(evidence.inputs).softmax(1)
        for path in ("body.layers.0", "body.layers.1", "body.layers.2"):
            network = trained(LAYERS)
            layer = network.get_submodule(path)
            for part in (layer.attention.outputs, layer.feed_forward[2]):
                part.weight.zero_()
                part.bias.zero_()
            said = network(evidence.inputs).log_softmax(1)
            changes[path] = float((dense * (dense.log() - said)).sum(1).mean())
    network = trained(LAYERS)
    Depth().prune(network, evidence.inputs)
    assert LAYERS.resized_as(network).skipped == (min(changes, key=changes.get),)


def test_several_go_and_the_network_is_built_again_from_its_spec(trained, evidence_of, tmp_path):
    for spec, count in ((DEEP, 4), (LAYERS, 2)):
        network, evidence = trained(spec), evidence_of(spec)
        macs = count_macs(network, evidence.example)
        Depth(remove=count).prune(network, evidence.inputs)
        found = spec.resized_as(network)
        assert len(found.skipped) == count
        assert count_macs(network, evidence.example) < macs
        networks.save(tmp_path, found, network)
        loaded_spec, loaded = networks.load(tmp_path)
        assert (loaded_spec, repr(loaded)) == (found, repr(network))
        assert torch.equal(loaded(evidence.inputs), network(evidence.inputs))
        loaded.train()(evidence.inputs).square().sum().backward()
        assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_channels_can_go_from_what_is_left(trained, evidence_of):
    network, evidence = trained(DEEP), evidence_of(DEEP)
    Depth(remove=2).prune(network, evidence.inputs)
    PRUNERS.parse({"name": "magnitude", "round_to": 4}).prune(network, evidence.inputs)
    spec = DEEP.resized_as(network)
    assert spec.skipped
    assert spec.sizes
    rebuilt = spec.build()
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(evidence.inputs), network(evidence.inputs))


@pytest.mark.parametrize("keep_macs", [0.9, 0.6])
def test_as_many_go_as_the_macs_ask_for(trained, evidence_of, keep_macs):
    network, evidence = trained(DEEP), evidence_of(DEEP)
    dense = count_macs(network, evidence.example)
    (cut,) = Depth(keep_macs=keep_macs).plan(network, evidence)
    count = cut.width - cut.kept
    shares = []
    for remove in (count - 1, count):
        pruned = trained(DEEP)
        if remove:
            Depth(remove=remove).prune(pruned, evidence.inputs)
        shares.append(count_macs(pruned, evidence.example) / dense)
    assert shares[1] <= keep_macs < shares[0]


def test_one_goes_unless_something_else_is_said():
    assert (Depth().remove, Depth(keep_macs=0.5).remove) == (1, None)
    with pytest.raises(ParamsError, match="remove and keep_macs exclude each other"):
        PRUNERS.parse({"name": "depth", "remove": 1, "keep_macs": 0.5})


@pytest.mark.parametrize("name", ["convnet", "mlp", "ngrams", "text_cnn"])
def test_networks_without_such_blocks_are_refused_with_their_layers(
    name, specs, trained, evidence_of
):
    network = trained(specs[name])
    with pytest.raises(CompressionError, match="has no block that could be left out") as caught:
        Depth().prune(network, evidence_of(specs[name]).inputs)
    assert all(f"body.{child}" in str(caught.value) for child, _ in network.body.named_children())


def test_too_many_are_refused_with_the_blocks(trained, evidence_of):
    evidence = evidence_of(DEEP)
    with pytest.raises(CompressionError, match=r"remove 6 .*body\.1, body\.2, body\.3, body\.5"):
        Depth(remove=6).prune(trained(DEEP), evidence.inputs)
    with pytest.raises(CompressionError, match=r"keep_macs 0\.01 cannot be reached: 0\.\d+ of"):
        Depth(keep_macs=0.01).prune(trained(DEEP), evidence.inputs)


@pytest.mark.parametrize("path", ["body.9", "nonsense", ""])
def test_a_spec_that_skips_what_is_not_there_is_refused(path):
    with pytest.raises(ArtifactError, match=f"the spec skips '{path}', which the network does not"):
        DEEP.model_copy(update={"skipped": (path,)}).build()


def test_a_block_fed_with_zeros_alone_is_not_taken_for_one_that_adds(trained):
    network = trained(DEEP)
    with torch.no_grad():
        network.body[0][1].weight.zero_()
        network.body[0][1].bias.zero_()
    found = residual_blocks(network, torch.rand(2, 3, 8, 8))
    assert not [path for path in found if path.startswith("body.1")]
