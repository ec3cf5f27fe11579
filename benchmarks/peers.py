"""The same networks in PyTorch, to be compared with.

Images are f32[B, 3, H, W] in [0, 1], channels last in memory, which is what
PyTorch is fastest with. A module's parts have the names that they have in
`pynas_jax`, so that its weights can be loaded; a test holds the outputs equal.
Of a searchable cell only the sampled operator runs, and parameters of the
others have no gradient, so that `torch.optim` leaves them alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pynas_jax import genotype as genotype_lib
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.nn import ops

CellSpec = str | tuple[str, ...]
_Path = Sequence[tuple[int, Any]] | None  # Candidate and gate of each cell.


def _conv(c_in: int, c_out: int, size: int = 3, **options: Any) -> nn.Conv2d:
  pad = options.get('dilation', 1) * (size // 2)
  return nn.Conv2d(c_in, c_out, size, padding=pad, **options)


class _Zero(nn.Module):
  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def _make_op(name: str, c: int) -> nn.Module:
  """Returns the operator of that name in `ops.OPS`."""
  if name == 'sep_conv_3x3':
    parts = {
      'depthwise': _conv(c, c, groups=c, bias=False),
      'pointwise': _conv(c, c, 1),
    }
  elif name == 'conv_3x3_x2':
    parts = {'conv1': _conv(c, c), 'relu': nn.ReLU(), 'conv2': _conv(c, c)}
  else:
    return {
      'conv_3x3': lambda: _conv(c, c),
      'conv_5x5': lambda: _conv(c, c, 5),
      'conv_3x3_dil2': lambda: _conv(c, c, dilation=2),
      'zero': _Zero,
    }[name]()
  op = nn.Sequential()
  for part, module in parts.items():
    op.add_module(part, module)
  return op


class _Cell(nn.Module):
  """x + op(x), of one operator or of the sampled one."""

  def __init__(self, spec: CellSpec, c: int):
    super().__init__()
    self.names = (spec,) if isinstance(spec, str) else spec
    for name in self.names:
      self.add_module(name, _make_op(name, c))

  def forward(
    self, x: torch.Tensor, index: int = 0, gate: torch.Tensor | None = None
  ) -> torch.Tensor:
    name = self.names[index]
    y = self.get_submodule(name)(x)
    y = y if name in ops.NOT_ACTIVATED else functional.relu(y)
    return x + (y if gate is None else gate * y)


class _Half(nn.Module):
  """An encoder, or with `upsample` a decoder."""

  def __init__(
    self, g: PyramidGenotype, cells: Sequence[CellSpec], *, is_decoder: bool
  ):
    super().__init__()
    widths = g.widths[::-1] if is_decoder else g.widths
    channels = 3 * g.unshuffle**2
    per_stage = len(cells) // len(widths)
    self.is_shuffled = is_decoder and g.upsample == 'pixel_shuffle'
    self.order: list[tuple[str, int]] = []  # Module and its cell, or -1.
    for stage, c in enumerate(widths):
      before = widths[stage - 1]
      if not is_decoder:
        name = f'down{stage}' if stage else 'stem'
        resize = _conv(
          before if stage else channels, c, stride=2 if stage else 1
        )
      elif stage:
        name = f'up{stage}'
        resize = (
          _conv(before, 4 * c)
          if self.is_shuffled
          else nn.ConvTranspose2d(before, c, 4, 2, 1)
        )
      if stage or not is_decoder:
        self.add_module(name, resize)
        self.order.append((name, -1))
      for i in range(stage * per_stage, (stage + 1) * per_stage):
        self.add_module(f'cell{i}', _Cell(cells[i], c))
        self.order.append((f'cell{i}', i))
    if is_decoder:
      self.add_module('out', _conv(widths[-1], channels))
      self.order.append(('out', -1))

  def forward(self, x: torch.Tensor, path: _Path = None) -> torch.Tensor:
    for name, cell in self.order:
      module = self.get_submodule(name)
      x = module(x, *path[cell]) if path and cell >= 0 else module(x)
      if self.is_shuffled and name.startswith('up'):
        x = functional.pixel_shuffle(x, 2)
    return x


class _Scale(nn.Module):
  def __init__(
    self, g: PyramidGenotype, cells: Sequence[CellSpec], *, has_link: bool
  ):
    super().__init__()
    half = len(cells) // 2
    self.encoder = _Half(g, cells[:half], is_decoder=False)
    self.decoder = _Half(g, cells[half:], is_decoder=True)
    if has_link and g.link == 'concat':
      self.fuse = _conv(2 * g.widths[-1], g.widths[-1], 1)


def _split(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
  b, c, h, w = x.shape
  if rows == cols == 1:
    return x
  x = x.reshape(b, c, rows, h // rows, cols, w // cols)
  x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, h // rows, w // cols)
  return x.contiguous(memory_format=torch.channels_last)


def _merge(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
  n, c, h, w = x.shape
  if rows == cols == 1:
    return x
  x = x.reshape(-1, rows, cols, c, h, w).permute(0, 3, 1, 4, 2, 5)
  x = x.reshape(-1, c, rows * h, cols * w)
  return x.contiguous(memory_format=torch.channels_last)


class Pyramid(nn.Module):
  """`spaces.pynas.Pyramid` of a genotype, whose scales have their own weights.

  Args:
    genotype: The architecture.
    candidates: Of every cell of a supernet; () for the genotype's own cells.
  """

  def __init__(
    self, genotype: PyramidGenotype, candidates: tuple[str, ...] = ()
  ):
    super().__init__()
    if genotype.share_weights:
      raise ValueError('share_weights is true; expected scales of their own.')
    self.genotype = genotype
    for level, scale in enumerate(genotype.scales):
      cells = scale.cells
      if candidates:
        cells = (candidates,) * len(cells)
      has_link = level < len(genotype.scales) - 1
      self.add_module(
        f'scale{level + 1}', _Scale(genotype, cells, has_link=has_link)
      )
    self.to(memory_format=torch.channels_last)

  def forward(self, image: torch.Tensor, path: _Path = None) -> torch.Tensor:
    """Restores images, by the candidate and the gate of each cell, if any."""
    g = self.genotype
    grids = genotype_lib.grids(g.scheme)
    factor = g.unshuffle * 2 ** (len(g.widths) - 1)
    h, w = image.shape[2:]
    pads = (-w % (factor * grids[-1][1]), -h % (factor * grids[-1][0]))
    x = image - 0.5
    if any(pads):
      x = functional.pad(x, (0, pads[0], 0, pads[1]), 'reflect')
    if g.unshuffle > 1:
      x = functional.pixel_unshuffle(x, g.unshuffle)
    x = x.to(next(self.parameters()).dtype)
    residual = features = None
    for level in reversed(range(len(grids))):
      network = self.get_submodule(f'scale{level + 1}')
      half = len(g.scales[0].encoder)
      halves = (path[:half], path[half:]) if path else (None, None)
      grid, out_grid = grids[level], grids[max(level - 1, 0)]
      scale_input = x if residual is None else x + residual
      coarser = features
      features = network.encoder(_split(scale_input, *grid), halves[0])
      features = _merge(features, *grid)
      if coarser is not None and g.link == 'add':
        features = features + coarser
      elif coarser is not None:
        features = network.fuse(torch.cat([features, coarser], 1))
      residual = network.decoder(_split(features, *out_grid), halves[1])
      residual = _merge(residual, *out_grid)
    output = x + residual if g.global_residual else residual
    if g.unshuffle > 1:
      output = functional.pixel_shuffle(output, g.unshuffle)
    return output[:, :, :h, :w].float() + 0.5


def _channels_out(size: int, factor: int) -> np.ndarray:
  """Our output channels in PyTorch's order of a pixel shuffle."""
  order = np.arange(size).reshape(factor, factor, -1)
  return order.transpose(2, 0, 1).reshape(-1)


@torch.no_grad()
def load(network: Pyramid, params: Mapping[str, Any]) -> Pyramid:
  """Copies the parameters of ours into PyTorch's network, and returns it.

  Args:
    network: Of the same genotype and candidates.
    params: As `spaces.pynas.Pyramid` has them.
  """
  unshuffle = network.genotype.unshuffle

  def find(names: list[str]) -> Any:
    tree: Any = params
    for name in names:
      tree = tree[name]
    return tree

  for name, module in network.named_modules():
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
      continue
    names = name.split('.')
    if names[-1].startswith('up'):
      names.append('conv')
    ours = find(names)
    if names[-1] == 'depthwise':  # [k, k, C] -> [C, 1, k, k].
      kernel = np.asarray(ours).transpose(2, 0, 1)[:, None]
      module.weight.copy_(torch.from_numpy(kernel.copy()))
      continue
    kernel, bias = np.asarray(ours['kernel']), np.asarray(ours['bias'])
    if isinstance(module, nn.ConvTranspose2d):
      kernel = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
    else:
      kernel = kernel.transpose(3, 2, 0, 1)
      if names[-2].startswith('up'):
        order = _channels_out(len(kernel), 2)
        kernel, bias = kernel[order], bias[order]
      elif names[-1] == 'out':
        order = _channels_out(len(kernel), unshuffle)
        kernel, bias = kernel[order], bias[order]
      elif names[-1] == 'stem':
        kernel = kernel[:, _channels_out(kernel.shape[1], unshuffle)]
    module.weight.copy_(torch.from_numpy(kernel.copy()))
    module.bias.copy_(torch.from_numpy(bias.copy()))
  return network


def to_torch(images: Any) -> torch.Tensor:
  """f32[B, H, W, 3] -> f32[B, 3, H, W], channels last in memory."""
  return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
