"""Narrower and shallower variants of a network, from its spec alone."""

from typing import Any

from pydantic import ValidationError

from tasks.errors import CompressionError
from tasks.networks import NETWORKS, Network

MULTIPLE = 8
COUNTS = ("blocks", "layers")
WIDTHS = ("width", "widths", "buckets")


def scaled(network: Network, width: float = 1.0, shallower: int = 0) -> Network:
    """A network of the same kind with fewer channels and fewer layers.

    Args:
        network: Where to start.
        width: Share of every width (channels, units, values per token, hashed vectors) to keep;
            below 1 the result is a multiple of 8, as kernels like it, at least 8, never wider.
        shallower: Layers to leave out: residual blocks of each stage, or transformer layers, while
            there is more than one; else whole convolutions or linear layers, from the last.

    Raises:
        CompressionError: There are not so many layers, or the architecture has no such variant.
    """
    tree = network.plain()
    for name in WIDTHS:
        if name in tree:
            tree[name] = _narrowed(tree[name], width)
    try:
        return NETWORKS.methods[tree["name"]].model_validate(_tuples(_shortened(tree, shallower)))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CompressionError(
            f"there is no '{tree['name']}' of {width:g} of the width: {reason}"
        ) from None


def _narrowed(widths: Any, share: float) -> Any:  # noqa: ANN401 - a number or several
    if isinstance(widths, list):
        return [_narrowed(one, share) for one in widths]
    if share == 1:
        return widths
    return min(widths, max(1, round(widths * share / MULTIPLE)) * MULTIPLE)


def _shortened(tree: dict[str, Any], shallower: int) -> dict[str, Any]:
    counted = next((name for name in COUNTS if tree.get(name, 1) > 1), None)
    several = "widths" if counted is None else counted
    available = len(tree.get("widths", [])) if counted is None else tree[counted]
    if not shallower:
        return tree
    if shallower >= available:
        raise CompressionError(
            f"'{tree['name']}' has {available or 1} of what could be left out, of which one has to "
            f"stay; {shallower} cannot go"
        )
    rest = tree[several][:-shallower] if counted is None else available - shallower
    return {**tree, several: rest}


def _tuples(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()
    }
