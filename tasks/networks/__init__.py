"""Networks: built from a spec (plain data), weights loaded from safetensors, nothing unpickled."""

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.errors import ArtifactError, ParamsError
from tasks.sections import Section, parse

SPEC_FILE = "network.json"
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch, and how it got there; float32.

    Attributes:
        logits: (N, classes).
        features: What the head sees, (N, width), or None where the model has none.
        maps: The last activation map (N, C, H, W) of every resolution, large to small; empty where
            the model has none.
    """

    logits: Tensor
    features: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


class Classifier(nn.Module):
    """A body that makes features (N, width) and a head that makes logits (N, classes).

    Attributes:
        frozen: Whether the body stays as it is while the head is trained (a linear probe).
    """

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, outputs) if outputs else nn.Identity()
        self.frozen = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of a batch, or its features where the network has no head."""
        return self.head(self.body(inputs))

    def outputs(self, inputs: Tensor) -> Outputs:
        """Logits, features and maps of a batch."""
        maps: list[Tensor] = []
        found = inputs
        pooled = True  # neither the rows themselves nor what a pool made of a map is a map
        for layer in self.body if isinstance(self.body, nn.Sequential) else [self.body]:
            following = layer(found)
            if not pooled and _is_map(found) and found.shape[2:] != following.shape[2:]:
                maps.append(found.float())
            pooled, found = isinstance(layer, nn.AvgPool2d), following
        return Outputs(self.head(found).float(), found.float(), tuple(maps))

    def freeze(self) -> None:
        """From here on only the head learns; the body keeps its normalisation statistics too."""
        self.frozen = True
        self.body.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Classifier":  # noqa: FBT001, FBT002 - torch's signature
        """As torch's, but a frozen body stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self


def _is_map(tensor: Tensor) -> bool:
    return tensor.dim() == 4  # noqa: PLR2004 - (N, C, H, W)


class Network(Section):
    """Contract of a network: its fields are its spec.

    Attributes:
        takes: The modality that it is made for, by name.
    """

    takes: ClassVar[str | None] = None

    @abstractmethod
    def body(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Builds the body for rows of a shape.

        Args:
            shape: `Encoding.input_shape`: images (side, side, channels), text (length, vocabulary),
                tables (features,).

        Returns:
            A module from a batch to features (N, width), and the width.
        """


NETWORKS = Drawer("tasks.networks", Network)


class Spec(Section):
    """All that is needed to build a network again, pruned or not.

    Attributes:
        network: Name and fields of the architecture.
        shape: What the network is built for, see `Encoding.input_shape`.
        outputs: Classes, or 0 for a body alone.
        sizes: Shapes of those tensors that pruning changed, by name.
    """

    network: Annotated[Network, NETWORKS]
    shape: tuple[int, ...]
    outputs: int
    sizes: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    @property
    def width(self) -> int:
        """Width of the body's features, before any pruning."""
        return self.network.body(self.shape)[1]

    def build(self) -> Classifier:
        """A network with fresh weights, initialised from torch's global seed."""
        body, width = self.network.body(self.shape)
        classifier = Classifier(body, width, self.outputs)
        if self.sizes:
            resize(classifier, self.sizes)
        return classifier

    def resized_as(self, network: nn.Module) -> "Spec":
        """The spec of a network that was pruned in place."""
        dense = self.model_copy(update={"sizes": {}}).build().state_dict()
        sizes = {
            name: tuple(tensor.shape)
            for name, tensor in network.state_dict().items()
            if tensor.shape != dense[name].shape
        }
        return self.model_copy(update={"sizes": sizes})


def resize(network: nn.Module, sizes: dict[str, tuple[int, ...]]) -> None:
    """Gives the named tensors their shapes, and their modules the matching attributes.

    Raises:
        ArtifactError: A name belongs to no tensor of the network.
    """
    for name, shape in sizes.items():
        path, _, attribute = name.rpartition(".")
        try:
            module = network.get_submodule(path)
            old = getattr(module, attribute)
        except AttributeError:
            raise ArtifactError(
                f"the spec names '{name}', which the network does not have"
            ) from None
        new = torch.empty(shape, dtype=old.dtype)
        setattr(module, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if attribute == "weight":
            _match_attributes(module, shape)


def _match_attributes(module: nn.Module, shape: tuple[int, ...]) -> None:
    match module:
        case nn.Conv1d() | nn.Conv2d():
            module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
        case nn.Linear():
            module.out_features, module.in_features = shape
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = shape
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            module.num_features = shape[0]
        case nn.LayerNorm():
            module.normalized_shape = shape
        case _:
            raise ArtifactError(f"no rule to resize a {type(module).__name__}")


def save(folder: Path, spec: Spec, network: nn.Module) -> None:
    """Writes `network.json` and `weights.safetensors`."""
    (folder / SPEC_FILE).write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)


def load(folder: Path) -> tuple[Spec, Classifier]:
    """Builds a stored network, in evaluation mode, bit-equal to the one saved.

    Raises:
        ArtifactError: A file is missing, cut, or does not fit the other.
    """
    try:
        spec = parse(Spec, json.loads((folder / SPEC_FILE).read_text(encoding="utf-8")), SPEC_FILE)
        network = spec.build()
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, json.JSONDecodeError, SafetensorError, RuntimeError, ParamsError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{folder} holds no whole network: {reason}") from None
    return spec, network.eval()


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one row through convolutions and linear layers.

    Not counted: looking up embeddings, adding and averaging, normalisation, activations, and the
    products of queries, keys and values in attention.

    Args:
        network: In evaluation mode.
        example: A batch of rows.
    """
    total = 0

    def add(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            total += module.weight[0].numel() * output[0].numel()

    handles = [module.register_forward_hook(add) for module in network.modules()]
    try:
        with torch.no_grad():
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return total
