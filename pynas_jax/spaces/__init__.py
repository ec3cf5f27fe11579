"""Search spaces by name. A new space is one file here and one line below."""

from __future__ import annotations

import ml_collections

from pynas_jax.genotype import Genotype
from pynas_jax.spaces.base import Space
from pynas_jax.spaces.hinas import Hinas
from pynas_jax.spaces.nafnet import Nafnet
from pynas_jax.spaces.pynas import PyNAS

SPACES: dict[str, type[Space]] = {'pynas': PyNAS, 'hinas': Hinas}
# Hand-made networks that no search makes: only `network` and `count`.
REFERENCES = {'nafnet': Nafnet}


def make_space(config: ml_collections.ConfigDict) -> Space:
  """Returns the space that the settings `space` and `model` describe."""
  return SPACES[config.space].from_settings(config)


def space_of(genotype: Genotype) -> type[Space]:
  """Returns the space whose `network` and `count` read this genotype."""
  return {**SPACES, **REFERENCES}[genotype.space]
