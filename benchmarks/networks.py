"""The networks that benchmarks run, and frames for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from pynas_jax import genotype as genotype_lib
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.genotype import ScaleGenotype
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

# What a search finds: one scale, every operator of the paper in a cell.
FOUND = PyramidGenotype(
  scales=(
    ScaleGenotype(
      1,
      ('conv_3x3', 'conv_5x5', 'conv_3x3_dil2'),
      ('sep_conv_3x3', 'conv_3x3', 'conv_3x3_dil2'),
    ),
  ),
  widths=(32, 64, 128), cells_per_stage=1, unshuffle=2,
)  # fmt: skip


def read(name: str) -> tuple[PyramidGenotype, Any]:
  """Returns the architecture and the parameters of a network.

  Args:
    name: 'found', which stands for a network of a search, 'dmphn' or another
      reference, with drawn parameters; or a folder of a trained network.
  """
  trained = None
  if Path(name).is_dir():
    from pynas_jax.deploy import restorer  # Only these need all of it.

    trained = restorer.load(name)
    genotype = trained.genotype
  else:
    genotype = FOUND if name == 'found' else genotype_lib.reference(name)
  if not isinstance(genotype, PyramidGenotype):  # `peers` has no others.
    raise SystemExit(
      f"{name} is no pyramid; expected 'found', 'dmphn', 'dmphn-1-2-4' or the "
      'folder of a trained one.'
    )
  if trained:
    return genotype, trained.params
  network = space_of(genotype).network(genotype)
  return genotype, base.init_params(jax.random.key(0), network)
