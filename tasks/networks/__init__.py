"""Networks: built from a spec (plain data), weights loaded from safetensors, nothing unpickled."""

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.errors import ArtifactError, CompressionError, ParamsError
from tasks.sections import Section, parse

SPEC_FILE = "network.json"
WEIGHTS_FILE = "weights.safetensors"

DropShare = Annotated[float, Field(ge=0, lt=1)]
"""Share of values that become 0 while training, the others scaled up (Srivastava et al. 2014)."""


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


class Factor(Section):
    """How a layer's weight is a product of smaller ones.

    Attributes:
        kind: What stands in the layer's place. `linear`: inputs → rank → outputs. `convolution`:
            the kernel to rank channels, then 1×1 to the outputs. `tucker`: 1×1 to fewer channels,
            the kernel among these, 1×1 to the outputs.
        ranks: Channels in between, by group: one number, or two for `tucker`.
    """

    kind: Literal["linear", "convolution", "tucker"]
    ranks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=2)]

    @model_validator(mode="after")
    def _has_its_ranks(self) -> "Factor":
        expected = 2 if self.kind == "tucker" else 1
        if len(self.ranks) != expected:
            raise ValueError(f"'{self.kind}' takes ranks: {expected}, found {len(self.ranks)}")
        return self


class Spec(Section):
    """All that is needed to build a network again, pruned or not.

    Attributes:
        network: Name and fields of the architecture.
        shape: What the network is built for, see `Encoding.input_shape`.
        outputs: Classes, or 0 for a body alone.
        sizes: Shapes of those tensors that pruning changed, by name.
        factors: Layers that were replaced by smaller ones after that, by path.
        skipped: Blocks that were removed before all that, by path.
    """

    network: Annotated[Network, NETWORKS]
    shape: tuple[int, ...]
    outputs: int
    sizes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    factors: dict[str, Factor] = Field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Width of the body's features, before any pruning."""
        return self.network.body(self.shape)[1]

    def build(self) -> Classifier:
        """A network with fresh weights, initialised from torch's global seed."""
        body, width = self.network.body(self.shape)
        classifier = Classifier(body, width, self.outputs)
        for path in self.skipped:
            skip(classifier, path)
        if self.sizes:
            resize(classifier, self.sizes)
        for path, factor in self.factors.items():
            replace_layer(classifier, path, factor)
        return classifier

    def resized_as(self, network: nn.Module) -> "Spec":
        """The spec of a network that was pruned in place.

        Raises:
            CompressionError: Layers of it had been factorized before.
        """
        if self.factors:
            raise CompressionError(
                f"a network whose layers {', '.join(self.factors)} were factorized cannot be "
                "pruned any more; prune first, then factorize"
            )
        dense = self.model_copy(update={"sizes": {}, "skipped": ()}).build().state_dict()
        sizes = {
            name: tuple(tensor.shape)
            for name, tensor in network.state_dict().items()
            if tensor.shape != dense[name].shape
        }
        skipped = tuple(
            name for name, module in network.named_modules() if isinstance(module, Skipped)
        )
        return self.model_copy(update={"sizes": sizes, "skipped": skipped})


class Skipped(nn.Identity):
    """Stands where a block was, and passes on the first thing that it gets."""

    def forward(self, input: Tensor, *_beside: object) -> Tensor:  # noqa: A002 - torch's name
        """The input as it came."""
        return input


def skip(network: nn.Module, path: str) -> None:
    """Takes a block out of a network.

    Raises:
        ArtifactError: There is none at `path`.
    """
    try:
        network.get_submodule(path)
        network.set_submodule(path, Skipped())
    except (AttributeError, ValueError):
        raise ArtifactError(f"the spec skips '{path}', which the network does not have") from None


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


def replace_layer(network: nn.Module, path: str, factor: Factor) -> nn.Sequential:
    """Puts smaller layers, with fresh weights, in the place of one; outputs keep their shape.

    Returns:
        The layers that now stand at `path`.

    Raises:
        ArtifactError: There is no layer at `path`, or not one of that kind.
    """
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        raise ArtifactError(f"the spec names '{path}', which the network does not have") from None
    smaller = nn.Sequential(*_smaller(layer, factor))
    network.set_submodule(path, smaller.to(next(layer.parameters())).train(layer.training))
    return smaller


def _smaller(layer: nn.Module, factor: Factor) -> list[nn.Module]:
    match layer, factor.kind:
        case nn.Linear(), "linear":
            (rank,) = factor.ranks
            last = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
            return [nn.Linear(layer.in_features, rank, bias=False), last]
        case nn.Conv1d() | nn.Conv2d(), "convolution" | "tucker":
            return _convolutions(layer, [layer.groups * rank for rank in factor.ranks])
        case _:
            raise ArtifactError(
                f"no rule to replace a {type(layer).__name__} by factors of kind '{factor.kind}'"
            )


def _convolutions(layer: nn.Conv1d | nn.Conv2d, between: list[int]) -> list[nn.Module]:
    """The kernel, with 1×1 after it and, where two widths lie between, before it."""
    *before, inputs, outputs = [layer.in_channels, *between]
    kind, groups = type(layer), layer.groups
    first = [kind(width, inputs, 1, groups=groups, bias=False) for width in before]
    kernel = kind(
        inputs,
        outputs,
        layer.kernel_size,  # pyright: ignore[reportArgumentType] - as many numbers as its own kind
        stride=layer.stride,  # pyright: ignore[reportArgumentType]
        padding=layer.padding,  # pyright: ignore[reportArgumentType]
        dilation=layer.dilation,  # pyright: ignore[reportArgumentType]
        groups=groups,
        bias=False,
        padding_mode=layer.padding_mode,
    )
    bias = layer.bias is not None
    return [*first, kernel, kind(outputs, layer.out_channels, 1, groups=groups, bias=bias)]


def _match_attributes(module: nn.Module, shape: tuple[int, ...]) -> None:
    match module:
        case nn.Conv1d() | nn.Conv2d():
            if 1 < module.groups == module.out_channels:  # one channel a group, however many
                module.groups = shape[0]
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
