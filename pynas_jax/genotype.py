"""The architecture as data: frozen dataclasses <-> JSON.

A genotype says everything needed to build a network, and nothing about its
weights. It is plain data: it imports no JAX, is validated when built or read,
and can be compared, hashed, drawn and mailed. Reading one never runs code.

`PyramidGenotype` is the result of the paper's search (PyNAS, sections 2.2 to
2.4): the scale depth and patch scheme of the pyramid (top-level variables) and
the operator in every cell (bottom-level variables).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
from typing import Any, ClassVar

FORMAT_VERSION = 1
MAX_JSON_BYTES = 1 << 20
MAX_DEPTH = 4  # PyNAS section 2.3: scale depth 1 <= D <= 4.
MAX_PATCHES = 16  # PyNAS section 2.4: at most 16 patches at the coarsest scale.
MAX_WIDTH = 1024  # Ours: a foreign file must not exhaust the memory.

OPERATORS = (
  'conv_3x3',
  'conv_5x5',
  'conv_3x3_dil2',
  'sep_conv_3x3',
  'zero',
  'conv_3x3_x2',
)
# Of HiNAS (its section 3.1): leaky ReLU, convolution, batch norm.
HINAS_OPERATORS = (
  'conv_3x3',
  'sep_conv_3x3',
  'sep_conv_5x5',
  'conv_3x3_dil2',
  'conv_5x5_dil2',
  'skip',
  'zero',
)
UPSAMPLES = ('pixel_shuffle', 'transposed')
LINKS = ('add', 'concat')


class GenotypeError(ValueError):
  """A genotype that cannot be built; the message names the field."""


def nearest(name: str, names: tuple[str, ...] | list[str]) -> str:
  """Returns ' Did you mean ...?' for the closest of `names`, or ''.

  >>> nearest('conv_3x', ('conv_3x3', 'zero'))
  " Did you mean 'conv_3x3'?"
  """
  close = difflib.get_close_matches(str(name), list(names), n=1)
  return f' Did you mean {close[0]!r}?' if close else ''


def _check(condition: bool, field: str, value: Any, expected: str) -> None:
  if not condition:
    raise GenotypeError(f'{field} is {value!r}; expected {expected}.')


def _check_name(field: str, value: Any, names: tuple[str, ...]) -> None:
  if value not in names:
    raise GenotypeError(
      f'{field} is {value!r}; expected one of {", ".join(names)}.'
      + nearest(value, names)
    )


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def check_scheme(scheme: tuple[int, ...], field: str = 'scheme') -> None:
  """Raises GenotypeError unless `scheme` is a patch scheme inside the limits.

  A scheme lists the number of patches per scale, finest first: it starts at 1,
  grows, and each number divides the next, so that grids nest.

  >>> check_scheme((1, 3, 9))
  >>> check_scheme((1, 2, 3))
  Traceback (most recent call last):
  pynas_jax.genotype.GenotypeError: scheme is (1, 2, 3); expected each number \
to be a multiple of the one before, and larger.
  """
  ok = isinstance(scheme, tuple) and all(_is_int(p) for p in scheme)
  _check(ok, field, scheme, 'whole numbers such as 1-2-4')
  limits = f'1 to {MAX_DEPTH} scales'
  _check(1 <= len(scheme) <= MAX_DEPTH, field, scheme, limits)
  _check(scheme[0] == 1, field, scheme, 'a first scale of 1 patch')
  limits = f'at most {MAX_PATCHES} patches'
  _check(max(scheme) <= MAX_PATCHES, field, scheme, limits)
  nested = all(a > 0 and b > a and b % a == 0
               for a, b in itertools.pairwise(scheme))  # fmt: skip
  expected = 'each number to be a multiple of the one before, and larger'
  _check(nested, field, scheme, expected)


def parse_scheme(text: str) -> tuple[int, ...]:
  """Reads a patch scheme as people write it.

  >>> parse_scheme('1-2-4-8')
  (1, 2, 4, 8)
  """
  try:
    scheme = tuple(int(part) for part in text.split('-'))
  except (ValueError, AttributeError):
    raise GenotypeError(
      f'scheme is {text!r}; expected whole numbers such as 1-2-4.'
    ) from None
  check_scheme(scheme)
  return scheme


def format_scheme(scheme: tuple[int, ...]) -> str:
  """Writes a patch scheme as people write it.

  >>> format_scheme((1, 3, 9))
  '1-3-9'
  """
  return '-'.join(str(p) for p in scheme)


def grids(scheme: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  """Returns how each scale of a scheme splits the image: rows and columns.

  The prime factors of the successive ratios split height and width in turn,
  height first, so that each grid refines the one before. Ours for numbers other
  than DMPHN's 1-2-4-8, which it contains.

  >>> grids((1, 2, 4, 8, 16))
  ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4))
  >>> grids((1, 3, 9)), grids((1, 6))
  (((1, 1), (3, 1), (3, 3)), ((1, 1), (2, 3)))
  """
  grid, axis, previous, out = [1, 1], 0, 1, []
  for patches in scheme:
    ratio, factor = patches // previous, 2
    while ratio > 1:
      if ratio % factor:
        factor += 1
        continue
      grid[axis] *= factor
      ratio, axis = ratio // factor, 1 - axis
    out.append((grid[0], grid[1]))
    previous = patches
  return tuple(out)


def all_schemes() -> tuple[tuple[int, ...], ...]:
  """Returns every patch scheme inside the limits, shortest first.

  >>> all_schemes()[:3], len(all_schemes())
  (((1,), (1, 2), (1, 3)), 42)
  """

  def extend(scheme):
    yield scheme
    if len(scheme) < MAX_DEPTH:
      for p in range(2 * scheme[-1], MAX_PATCHES + 1, scheme[-1]):
        yield from extend((*scheme, p))

  return tuple(sorted(extend((1,)), key=lambda s: (len(s), s)))


@dataclasses.dataclass(frozen=True)
class Genotype:
  """What every search space's genotype can do; subclasses add the fields."""

  space: ClassVar[str]
  # Size of the output over that of the input; a field where it may be another.
  scale = 1

  def to_dict(self) -> dict[str, Any]:
    """Returns plain JSON types, with the format version and the space."""
    fields = json.loads(json.dumps(dataclasses.asdict(self)))
    return {'format': FORMAT_VERSION, 'space': self.space, **fields}

  def to_json(self) -> str:
    """Returns readable JSON; `from_json` is its exact inverse."""
    return json.dumps(self.to_dict(), indent=2) + '\n'

  def digest(self) -> str:
    """Returns 12 hex digits that name this architecture, the same anywhere."""
    canonical = json.dumps(self.to_dict(), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]

  def describe(self) -> str:
    """Returns a few lines for people."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ScaleGenotype:
  """One scale network: its patches and the operator of each of its cells.

  Attributes:
    patches: Number of patches the image is split into at this scale.
    encoder: Operators from the full resolution down, `cells_per_stage` a stage.
    decoder: Operators from the lowest resolution up, likewise.
  """

  patches: int
  encoder: tuple[str, ...]
  decoder: tuple[str, ...]

  @property
  def cells(self) -> tuple[str, ...]:
    """Operators of all cells, encoder first."""
    return self.encoder + self.decoder


@dataclasses.dataclass(frozen=True)
class PyramidGenotype(Genotype):
  """A multi-scale multi-patch network of the PyNAS space.

  Attributes:
    scales: Scale networks, finest (one patch) first.
    widths: Channels of each encoder stage; the decoder mirrors them.
    cells_per_stage: Cells in each stage.
    upsample: 'pixel_shuffle', or 'transposed' as in DMPHN.
    link: How coarser features join finer ones: 'add' as in DMPHN, or 'concat'.
    global_residual: Whether the finest scale predicts output minus input.
    share_weights: Whether all scales use one set of weights (PyNAS_s).
    unshuffle: Factor by which pixels are folded into channels before the
      network and out after it (1, 2 or 4). Ours: trades detail for speed.
  """

  space: ClassVar[str] = 'pynas'

  scales: tuple[ScaleGenotype, ...]
  widths: tuple[int, ...] = (32, 64, 128)
  cells_per_stage: int = 2
  upsample: str = 'pixel_shuffle'
  link: str = 'add'
  global_residual: bool = True
  share_weights: bool = False
  unshuffle: int = 1

  def __post_init__(self):
    ok = isinstance(self.scales, tuple) and bool(self.scales)
    ok = ok and all(isinstance(scale, ScaleGenotype) for scale in self.scales)
    _check(ok, 'scales', self.scales, 'a list of at least one scale')
    check_scheme(self.scheme, 'scales[*].patches')
    ok = isinstance(self.widths, tuple) and 1 <= len(self.widths) <= 6
    ok = ok and all(_is_int(w) and 1 <= w <= MAX_WIDTH for w in self.widths)
    _check(ok, 'widths', self.widths, f'1 to 6 numbers in 1..{MAX_WIDTH}')
    ok = _is_int(self.cells_per_stage) and 1 <= self.cells_per_stage <= 16
    _check(ok, 'cells_per_stage', self.cells_per_stage, '1 to 16')
    _check_name('upsample', self.upsample, UPSAMPLES)
    _check_name('link', self.link, LINKS)
    for field in ('global_residual', 'share_weights'):
      value = getattr(self, field)
      _check(isinstance(value, bool), field, value, 'true or false')
    ok = _is_int(self.unshuffle) and self.unshuffle in (1, 2, 4)
    _check(ok, 'unshuffle', self.unshuffle, '1, 2 or 4')
    num_cells = len(self.widths) * self.cells_per_stage
    for i, scale in enumerate(self.scales):
      for half in ('encoder', 'decoder'):
        field, cells = f'scales[{i}].{half}', getattr(scale, half)
        ok = isinstance(cells, tuple) and len(cells) == num_cells
        expected = (
          f'{num_cells} operators, {self.cells_per_stage} for each of '
          f'{len(self.widths)} widths'
        )
        _check(ok, field, cells, expected)
        for j, operator in enumerate(cells):
          _check_name(f'{field}[{j}]', operator, OPERATORS)
    if self.share_weights:
      same = len({scale.cells for scale in self.scales}) == 1
      expected = 'false, as the scales differ in their cells'
      _check(same, 'share_weights', True, expected)

  @property
  def scheme(self) -> tuple[int, ...]:
    """Patches per scale, finest first."""
    return tuple(scale.patches for scale in self.scales)

  def describe(self) -> str:
    lines = [
      f'{self.space} {format_scheme(self.scheme)}  widths '
      f'{"-".join(map(str, self.widths))}  {self.upsample}  {self.link} links'
      + ('  global residual' if self.global_residual else '')
      + ('  shared weights' if self.share_weights else '')
      + (f'  unshuffle {self.unshuffle}' if self.unshuffle > 1 else '')
    ]
    for i, scale in enumerate(self.scales):
      lines.append(
        f'  scale {i + 1} ({scale.patches} patches)  '
        f'encoder {" ".join(scale.encoder)}  decoder {" ".join(scale.decoder)}'
      )
    return '\n'.join(lines)


@dataclasses.dataclass(frozen=True)
class NafnetGenotype(Genotype):
  """NAFNet (Chen et al., ECCV 2022), a reference that no search made.

  Attributes:
    width: Channels at full resolution; they double as the resolution halves.
    encoder: Blocks at each resolution, the full one first.
    middle: Blocks at the lowest resolution.
    decoder: Blocks at each resolution, the full one last.
  """

  space: ClassVar[str] = 'nafnet'

  width: int = 32
  encoder: tuple[int, ...] = (1, 1, 1, 28)
  middle: int = 1
  decoder: tuple[int, ...] = (1, 1, 1, 1)

  def __post_init__(self):
    ok = _is_int(self.width) and 1 <= self.width <= MAX_WIDTH
    _check(ok, 'width', self.width, f'a number in 1..{MAX_WIDTH}')
    for field in ('encoder', 'decoder'):
      value = getattr(self, field)
      ok = isinstance(value, tuple)
      ok = ok and 1 <= len(value) == len(self.encoder) <= 5
      ok = ok and all(_is_int(n) and 0 <= n <= 64 for n in value)
      _check(ok, field, value, 'as many numbers in 0..64 for each half, 1 to 5')
    ok = _is_int(self.middle) and 0 <= self.middle <= 64
    _check(ok, 'middle', self.middle, 'a number in 0..64')

  def describe(self) -> str:
    return (
      f'NAFNet  width {self.width}  encoder {self.encoder}  middle '
      f'{self.middle}  decoder {self.decoder}'
    )


# An input of a node and the operator on the way: 0 is the layer before, 1 the
# one before that, and 2 + j the cell's node j.
Edge = tuple[int, str]


@dataclasses.dataclass(frozen=True)
class HinasGenotype(Genotype):
  """A stack of searched cells of searched widths (HiNAS, sections 3.1 to 3.3).

  Attributes:
    cells: Per layer, per node, its two inputs and their operators.
    levels: Per layer, the place of its width in `width_factors`.
    width: Channels of a node at a factor of 1; a layer has as many for each of
      its nodes.
    width_factors: Of the levels (paper: 1, 2, 4; reference code: 1, 1.5, 2).
    stem_width: Channels of the first and the last convolutions.
    sep_repeats: Times that a separable convolution is done (code: 2).
    share_cells: Whether a cell was searched for all widths before it at once
      (Eq. 5) or for each (Eq. 6); its weights are named after that.
    residual: Whether the network predicts output minus input.
    scale: Factor of super-resolution; 1 keeps the size.
  """

  space: ClassVar[str] = 'hinas'

  cells: tuple[tuple[tuple[Edge, Edge], ...], ...]
  levels: tuple[int, ...]
  width: int = 20
  width_factors: tuple[float, ...] = (1.0, 2.0, 4.0)
  stem_width: int = 64
  sep_repeats: int = 1
  share_cells: bool = True
  residual: bool = True
  scale: int = 1

  def __post_init__(self):
    for field, largest in (
      ('width', MAX_WIDTH), ('stem_width', MAX_WIDTH), ('sep_repeats', 4),
      ('scale', 8),
    ):  # fmt: skip
      value = getattr(self, field)
      ok = _is_int(value) and 1 <= value <= largest
      _check(ok, field, value, f'a number in 1..{largest}')
    for field in ('share_cells', 'residual'):
      value = getattr(self, field)
      _check(isinstance(value, bool), field, value, 'true or false')
    factors = self.width_factors
    ok = isinstance(factors, tuple) and 1 <= len(factors) <= 8
    ok = ok and all(
      isinstance(f, (int, float)) and f > 0 and 1 <= self.width * f <= MAX_WIDTH
      for f in factors
    )
    expected = f'1 to 8 factors that make widths in 1..{MAX_WIDTH}'
    _check(ok, 'width_factors', factors, expected)
    ok = isinstance(self.cells, tuple) and 1 <= len(self.cells) <= 64
    _check(ok, 'cells', self.cells, '1 to 64 layers')
    for i, cell in enumerate(self.cells):
      ok = isinstance(cell, tuple) and 1 <= len(cell) <= 16
      _check(ok, f'cells[{i}]', cell, '1 to 16 nodes')
      _check(
        len(cell) == len(self.cells[0]), f'cells[{i}]', cell,
        f'{len(self.cells[0])} nodes, as the first layer has',
      )  # fmt: skip
      for j, node in enumerate(cell):
        self._check_node(f'cells[{i}][{j}]', node, j + 2)
    ok = isinstance(self.levels, tuple) and len(self.levels) == len(self.cells)
    _check(ok, 'levels', self.levels, f'{len(self.cells)}, one for each layer')
    before = 0
    for i, level in enumerate(self.levels):
      near = range(max(0, before - 1), min(before + 2, len(factors)))
      ok = _is_int(level) and level in near
      expected = f'one of {list(near)}, next to that of the layer before'
      _check(ok, f'levels[{i}]', level, expected)
      before = level

  @staticmethod
  def _check_node(field: str, node: Any, num_inputs: int) -> None:
    ok = isinstance(node, tuple) and len(node) == 2
    ok = ok and all(isinstance(e, tuple) and len(e) == 2 for e in node)
    _check(ok, field, node, 'two pairs of an input and an operator')
    for source, operator in node:
      ok = _is_int(source) and 0 <= source < num_inputs
      _check(ok, field, source, f'inputs in 0..{num_inputs - 1}')
      _check_name(field, operator, HINAS_OPERATORS)
    ok = node[0][0] != node[1][0]
    _check(ok, field, node, 'two inputs that differ')

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels of a node in each layer."""
    return tuple(
      round(self.width * self.width_factors[level]) for level in self.levels
    )

  @property
  def operators(self) -> tuple[str, ...]:
    """Operators of all cells, in order."""
    return tuple(
      operator for cell in self.cells for node in cell for _, operator in node
    )

  def describe(self) -> str:
    kind = f'x{self.scale}  ' if self.scale > 1 else ''
    lines = [
      f'{self.space}  {kind}widths {"-".join(map(str, self.widths))}'
      + ('  residual' if self.residual else '')
    ]
    for i, cell in enumerate(self.cells):
      nodes = (
        ' + '.join(f'{operator}({source})' for source, operator in node)
        for node in cell
      )
      lines.append(f'  layer {i + 1}  ' + '  '.join(nodes))
    return '\n'.join(lines)


GENOTYPES: dict[str, type[Genotype]] = {
  cls.space: cls for cls in (PyramidGenotype, NafnetGenotype, HinasGenotype)
}


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _build(cls: type, values: Any, where: str) -> Any:
  """Builds dataclass `cls` from a JSON object, refusing unknown fields."""
  whole = where.rstrip('.') or 'genotype'
  _check(isinstance(values, dict), whole, values, 'an object')
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for name in values:
    if name not in fields:
      raise GenotypeError(
        f'{where}{name} is not a field of {cls.__name__}; expected '
        f'{", ".join(fields)}.' + nearest(name, list(fields))
      )
  for name, field in fields.items():
    required = field.default is dataclasses.MISSING
    if required and name not in values:
      raise GenotypeError(f'{where}{name} is missing.')
  return cls(**{name: _tuples(value) for name, value in values.items()})


def from_dict(values: Any) -> Genotype:
  """Builds the genotype that `Genotype.to_dict` wrote.

  Raises:
    GenotypeError: Names the field, its value and what was expected.
  """
  _check(isinstance(values, dict), 'genotype', values, 'a JSON object')
  values = dict(values)
  version = values.pop('format', None)
  _check(
    _is_int(version) and version == FORMAT_VERSION, 'format', version,
    f'{FORMAT_VERSION}, the version that this pynas_jax reads',
  )  # fmt: skip
  space = values.pop('space', None)
  _check_name('space', space, tuple(GENOTYPES))
  cls = GENOTYPES[space]
  if cls is PyramidGenotype and isinstance(values.get('scales'), list):
    values['scales'] = [
      _build(ScaleGenotype, scale, f'scales[{i}].')
      for i, scale in enumerate(values['scales'])
    ]
  return _build(cls, values, '')


def from_json(text: str) -> Genotype:
  """Builds the genotype that `Genotype.to_json` wrote.

  Raises:
    GenotypeError: If the text is no JSON, too long or not a valid genotype.
  """
  if len(text) > MAX_JSON_BYTES:
    raise GenotypeError(
      f'genotype has {len(text)} characters; expected at most {MAX_JSON_BYTES}.'
    )
  try:
    return from_dict(json.loads(text))
  except GenotypeError:
    raise
  except (ValueError, RecursionError) as error:
    raise GenotypeError(f'genotype is not JSON: {error}.') from None


def dmphn(scheme: tuple[int, ...] = (1, 2, 4, 8)) -> PyramidGenotype:
  """Returns DMPHN (Zhang et al., CVPR 2019) as a point of the PyNAS space.

  Source: the published code; conv-ReLU-conv in every cell, transposed
  convolutions up, additive links, no final global residual.
  """
  cells = ('conv_3x3_x2',) * 6
  return PyramidGenotype(
    scales=tuple(ScaleGenotype(p, cells, cells) for p in scheme),
    upsample='transposed',
    global_residual=False,
  )


def reference(name: str) -> Genotype | None:
  """Returns the hand-made network of a name, or None if there is none.

  >>> reference('dmphn-1-2-4').scheme, reference('nafnet-16').width
  ((1, 2, 4), 16)

  Args:
    name: 'dmphn', which is 'dmphn-1-2-4-8', 'dmphn-1-2-4' and so on, or
      'nafnet-32' with the width.
  """
  kind, _, rest = name.partition('-')
  try:
    if kind == 'dmphn':
      return dmphn(parse_scheme(rest) if rest else (1, 2, 4, 8))
    if kind == 'nafnet' and rest.isdecimal():
      return NafnetGenotype(width=int(rest))
  except GenotypeError:
    pass
  return None
