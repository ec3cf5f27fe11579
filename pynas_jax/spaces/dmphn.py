"""Published DMPHN weights, for the network `genotype.dmphn()`.

The files are PyTorch state dicts, two per level (Zhang et al., CVPR 2019). They
are read by PyTorch with `weights_only`, so nothing in them is run; PyTorch is
only needed for that (extra `torch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pynas_jax import genotype as genotype_lib

# Published layer -> ours. Residual blocks hold convolutions 0 and 2.
_ENCODER = {1: 'stem', 5: 'down1', 9: 'down2'}
_ENCODER_CELLS = ((2, 3), (6, 7), (10, 11))
_DECODER_CELLS = ((13, 14), (17, 18), (21, 22))
_DECODER_UPS = {16: 'up1', 20: 'up2'}
_DECODER_OUT = 24


class WeightsError(ValueError):
  """Published weights that cannot be read; the message names the file."""


def is_published(directory: Path) -> bool:
  """Returns whether a folder holds the published state dicts."""
  return (directory / 'encoder_lv1.pkl').is_file()


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a PyTorch state dict.

  Raises:
    WeightsError: If PyTorch is missing or the file holds anything else.
  """
  try:
    import torch  # Heavy, and needed by nobody else.
  except ImportError:
    raise WeightsError(
      f'{path} is a PyTorch file; reading it needs PyTorch: '
      "pip install 'pynas-jax[torch]'."
    ) from None
  try:
    state = torch.load(path, map_location='cpu', weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}
  except Exception as error:
    message = f'{path} is not a PyTorch state dict: {error}'
    raise WeightsError(message) from error


def _conv(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
  kernel = state[f'{name}.weight'].transpose(2, 3, 1, 0)  # OIHW -> HWIO.
  return {'kernel': kernel, 'bias': state[f'{name}.bias']}


def _conv_transpose(
  state: Mapping[str, np.ndarray], name: str
) -> dict[str, np.ndarray]:
  # IOHW -> HWIO; PyTorch's is the gradient of a convolution, hence flipped.
  kernel = state[f'{name}.weight'].transpose(2, 3, 0, 1)[::-1, ::-1]
  return {'kernel': kernel, 'bias': state[f'{name}.bias']}


def _cell(state: Mapping[str, np.ndarray], layer: int) -> dict[str, Any]:
  return {
    'conv_3x3_x2': {
      'conv1': _conv(state, f'layer{layer}.0'),
      'conv2': _conv(state, f'layer{layer}.2'),
    }
  }


def convert_scale(
  encoder: Mapping[str, np.ndarray], decoder: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Returns the parameters of one scale from the state dicts of its halves."""
  ours: dict[str, Any] = {'encoder': {}, 'decoder': {}}
  for layer, name in _ENCODER.items():
    ours['encoder'][name] = _conv(encoder, f'layer{layer}')
  for layer, name in _DECODER_UPS.items():
    up = _conv_transpose(decoder, f'layer{layer}')
    ours['decoder'][name] = {'conv': up}
  ours['decoder']['out'] = _conv(decoder, f'layer{_DECODER_OUT}')
  for half, state, layers in (
    ('encoder', encoder, _ENCODER_CELLS), ('decoder', decoder, _DECODER_CELLS)
  ):  # fmt: skip
    for i, layer in enumerate(sum(layers, ())):
      ours[half][f'cell{i}'] = _cell(state, layer)
  return ours


def load(
  directory: Path,
) -> tuple[genotype_lib.PyramidGenotype, dict[str, Any]]:
  """Reads the published DMPHN(1-2-4-8).

  Args:
    directory: Holds `encoder_lv1.pkl` ... `decoder_lv4.pkl`.

  Returns:
    Its genotype, and its parameters for `PyNAS.network`.

  Raises:
    WeightsError: Names the file that is missing or not as published.
  """
  genotype = genotype_lib.dmphn()
  params = {}
  for level in range(1, len(genotype.scales) + 1):
    halves = []
    for half in ('encoder', 'decoder'):
      path = directory / f'{half}_lv{level}.pkl'
      if not path.is_file():
        raise WeightsError(f'{path} is missing; expected 8 published files.')
      halves.append(read_state_dict(path))
    try:
      params[f'scale{level}'] = convert_scale(*halves)
    except KeyError as error:
      raise WeightsError(
        f'{directory}: level {level} has no array {error}; expected the '
        'published DMPHN state dicts.'
      ) from None
  return genotype, params
