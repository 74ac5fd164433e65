"""Recipe -> network."""

from collections.abc import Callable, Mapping

from torch import nn

from lib.errors import ConfigError
from lib.networks.organnet25d import OrganNet25D
from lib.recipes import Recipe


def _organnet25d(recipe: Recipe) -> nn.Module:
    config = recipe.network
    return OrganNet25D(
        len(recipe.hu_windows),
        recipe.classes,
        width=config.width,
        dilations=config.dilations,
        se_reduction=config.se_reduction,
        dropout=config.dropout,
    )


NETWORKS: Mapping[str, Callable[[Recipe], nn.Module]] = {"organnet25d": _organnet25d}
"""Name in `NetworkConfig.name` -> what builds it."""


def build_network(recipe: Recipe) -> nn.Module:
    """Return the recipe's network with fresh weights.

    Raises:
        ConfigError: If the recipe names a network that is not known.
    """
    if recipe.network.name not in NETWORKS:
        raise ConfigError(
            f"recipe {recipe.name!r}: network {recipe.network.name!r} is not known; "
            f"the networks are {', '.join(NETWORKS)}"
        )
    return NETWORKS[recipe.network.name](recipe)
