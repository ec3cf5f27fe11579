"""The found architecture as a picture: an SVG document, drawn from data alone.

The networks it draws are those of PyNAS sections 2.2 and 2.3. This module
imports no JAX.
"""

from __future__ import annotations

import math
from xml.sax import saxutils

from pynas_jax import genotype as genotype_lib

# Operator -> (fill, two lines of text inside the cell, name in the legend).
OPERATOR_STYLES = {
  'conv_3x3': ('#2f6db3', ('3×3', ''), '3×3 convolution'),
  'conv_5x5': ('#cf5c0a', ('5×5', ''), '5×5 convolution'),
  'conv_3x3_dil2': ('#2f8a4c', ('3×3', 'dil 2'), '3×3 dilated by 2'),
  'sep_conv_3x3': ('#8a56ac', ('3×3', 'sep'), '3×3 separable'),
  'conv_3x3_x2': ('#0f7b83', ('3×3', 'twice'), 'two 3×3 convolutions'),
  'zero': ('none', ('zero', ''), 'nothing: the cell vanishes'),
}
INK, GREY, FIXED = '#1f2933', '#66727f', '#c5ccd6'
IMAGE_LINK, FEATURE_LINK = '#c2410c', '#4f46e5'
FONT = 'Helvetica, Arial, sans-serif'
CELL, GAP, FUNNEL = 40, 4, 16  # Pixels: cell width, space, strided conv width.
ROW, MARGIN, TALLEST = 150, 32, 76  # Pixels.


def _text(x, y, text, size=11, fill=INK, anchor='middle', extra='') -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" '
    f'text-anchor="{anchor}" {extra}>{saxutils.escape(text)}</text>'
  )


def _rect(x, y, width, height, fill, extra='') -> str:
  return (
    f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
    f'height="{height:.1f}" fill="{fill}" {extra}/>'
  )


def _path(d: str, color: str, extra: str = '') -> str:
  return f'<path d="{d}" fill="none" stroke="{color}" {extra}/>'


def _arrow(d: str, color: str, marker: str, width: float = 1.8) -> str:
  extra = f'stroke-width="{width}" marker-end="url(#{marker})"'
  return _path(d, color, extra + ' stroke-linejoin="round"')


def _plus(x: float, y: float, color: str, symbol: str = '+') -> str:
  """Draws where two things are joined."""
  stroke = f'stroke="{color}" stroke-width="1.5"'
  shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="white" {stroke}/>'
  return shape + _text(x, y + 4.2, symbol, 13, color)


def _cell(x: float, y: float, height: float, operator: str, tip: str) -> str:
  """Draws one cell, its left edge at x and its middle at y."""
  fill, (first, second), _ = OPERATOR_STYLES[operator]
  box = f'rx="4" class="cell" data-operator="{operator}"'
  ink = 'white'
  if operator == 'zero':
    fill, ink = 'white', GREY
    box += f' stroke="{GREY}" stroke-width="1.2" stroke-dasharray="4 3"'
  parts = [
    f'<g><title>{saxutils.escape(tip)}</title>',
    _rect(x, y - height / 2, CELL, height, fill, box),
    _text(x + CELL / 2, y + (-1.5 if second else 4), first, 11, ink),
  ]
  if second:
    parts.append(_text(x + CELL / 2, y + 10, second, 9.5, ink))
  return ''.join(parts) + '</g>'


def _grid(x: float, y: float, rows: int, cols: int) -> str:
  """Draws the image and its patches; x is the left edge and y the middle."""
  width, height = 72, 54
  top, parts = y - height / 2, []
  for row in range(rows):
    for col in range(cols):
      shade = '#dbe7f5' if (row + col) % 2 else '#c3d6ec'
      parts.append(
        _rect(
          x + width * col / cols, top + height * row / rows, width / cols,
          height / rows, shade, 'stroke="white" stroke-width="1.2"',
        )
      )  # fmt: skip
  frame = f'stroke="{GREY}" stroke-width="1.2"'
  return ''.join(parts) + _rect(x, top, width, height, 'none', frame)


def _heights(stages: int) -> list[float]:
  """Returns the pixel height of each stage: lower resolution, lower box."""
  return [max(30.0, TALLEST * 0.68**s) for s in range(stages)]


class _Row:
  """Where the parts of one scale network are, from left to right."""

  def __init__(self, stages: int, cells: int, left: float, middle: float):
    self.middle = middle
    self.image = left + 76  # After the label.
    self.join_in = self.image + 72 + 30
    x = self.stem = self.join_in + 28
    x += 8 + GAP  # The stem is a slim box.
    self.encoder, self.down, self.up, self.decoder = [], [], [], []
    stage = cells * CELL + (cells - 1) * GAP
    for s in range(stages):
      self.encoder.append(x)
      x += stage + GAP
      if s < stages - 1:
        self.down.append(x)
        x += FUNNEL + GAP
    self.join_middle = x + 26
    x += 52
    for s in range(stages):
      self.decoder.append(x)
      x += stage + GAP
      if s < stages - 1:
        self.up.append(x)
        x += FUNNEL + GAP
    self.tail = x
    self.stage = stage
    self.join_out = x + 8 + 30
    self.right = self.join_out + 34


def _funnel(x: float, y: float, before: float, after: float) -> str:
  """Draws a convolution that changes the resolution."""
  a, b = before / 2, after / 2
  return (
    f'<polygon points="{x:.1f},{y - a:.1f} {x + FUNNEL:.1f},{y - b:.1f} '
    f'{x + FUNNEL:.1f},{y + b:.1f} {x:.1f},{y + a:.1f}" fill="{FIXED}"/>'
  )


def _scale(
  genotype: genotype_lib.PyramidGenotype, index: int, row: _Row
) -> str:
  """Draws one scale network, without the links between scales."""
  scale = genotype.scales[index]
  rows, cols = genotype_lib.grids(genotype.scheme)[index]
  widths, cells = genotype.widths, genotype.cells_per_stage
  heights, y = _heights(len(widths)), row.middle
  stages = len(widths)
  parts = [
    f'<g id="scale-{index + 1}" class="scale">',
    _text(MARGIN, y - 3, f'scale {index + 1}', 14, INK, 'start',
          'font-weight="bold"'),
    _text(MARGIN, y + 14, f'{rows} × {cols}',
          11, GREY, 'start'),
    _grid(row.image, y, rows, cols),
    _text(row.image + 36, y + 43,
          f'{scale.patches} patch' + ('es' if scale.patches > 1 else ''), 11,
          GREY),
  ]  # fmt: skip
  for x in (row.stem, row.tail):
    parts.append(_rect(x, y - heights[0] / 2, 8, heights[0], FIXED, 'rx="2"'))
  for s, x in enumerate(row.down):
    parts.append(_funnel(x, y, heights[s], heights[s + 1]))
  for s, x in enumerate(row.up):
    parts.append(_funnel(x, y, heights[-1 - s], heights[-2 - s]))
  for half, lefts in (('encoder', row.encoder), ('decoder', row.decoder)):
    operators = getattr(scale, half)
    for s in range(stages):
      level = s if half == 'encoder' else stages - 1 - s
      for c in range(cells):
        operator = operators[s * cells + c]
        tip = (
          f'scale {index + 1}, {half}, {widths[level]} channels, cell {c + 1}: '
          f'{operator}'
        )
        x = lefts[s] + c * (CELL + GAP)
        parts.append(_cell(x, y, heights[level], operator, tip))
      x = lefts[s] + row.stage / 2
      below = y + heights[level] / 2 + 14
      parts.append(_text(x, below, str(widths[level]), 10.5, GREY))
  return '\n'.join(parts) + '\n</g>'


def _wires(genotype: genotype_lib.PyramidGenotype, rows: list[_Row]) -> str:
  """Draws the arrows inside and between the scales."""
  parts = []
  last = len(rows) - 1
  joins = genotype.link == 'concat'
  for i, row in enumerate(rows):
    y = row.middle
    linked = i < last
    image_right, reach = row.image + 72, 10.0
    end = row.join_in - reach if linked else row.stem - 3
    parts.append(_arrow(f'M{image_right:.1f} {y}H{end:.1f}', GREY, 'grey'))
    encoder_end = row.encoder[-1] + row.stage
    start = row.decoder[0]
    if linked:
      parts += [
        _arrow(f'M{row.join_in + 8:.1f} {y}H{row.stem - 3:.1f}', GREY, 'grey'),
        _arrow(f'M{encoder_end + 3:.1f} {y}H{row.join_middle - reach:.1f}',
               GREY, 'grey'),
        _arrow(f'M{row.join_middle + 8:.1f} {y}H{start - 3:.1f}', GREY,
               'grey'),
      ]  # fmt: skip
    else:
      path = f'M{encoder_end + 3:.1f} {y}H{start - 3:.1f}'
      parts.append(_arrow(path, GREY, 'grey'))
    out = row.tail + 8
    skip = i == 0 and genotype.global_residual
    if i == 0:
      end = row.join_out - reach if skip else row.right - 4
      parts.append(_arrow(f'M{out + 3:.1f} {y}H{end:.1f}', GREY, 'grey'))
    if skip:
      top = y - TALLEST / 2 - 16
      begin = row.image + 36
      parts += [
        _arrow(f'M{begin:.1f} {y - 27:.1f}V{top:.1f}H{row.join_out:.1f}'
               f'V{y - reach:.1f}', GREY, 'grey'),
        _arrow(f'M{row.join_out + 8:.1f} {y}H{row.right - 4:.1f}', GREY,
               'grey'),
        _plus(row.join_out, y, GREY),
      ]  # fmt: skip
    if i == 0:
      image = _grid(row.right, y, 1, 1)
      parts += [image, _text(row.right + 36, y + 43, 'restored', 11, GREY)]
      continue
    # From this scale up to the next finer one: features, then the image, which
    # passes over the features' arrow by a bridge.
    upper = rows[i - 1].middle
    lane = (y + upper) / 2 + 4
    middle = row.join_middle
    end = upper + reach
    parts += [
      _arrow(f'M{middle:.1f} {y - (8 if linked else 0):.1f}V{end:.1f}',
             FEATURE_LINK, 'feature'),
      _arrow(f'M{out + 3:.1f} {y}H{row.join_out:.1f}V{lane:.1f}'
             f'H{middle + 7:.1f}a7 7 0 0 0 -14 0H{row.join_in:.1f}'
             f'V{end:.1f}', IMAGE_LINK, 'image'),
      _plus(rows[i - 1].join_in, upper, IMAGE_LINK),
      _plus(rows[i - 1].join_middle, upper, FEATURE_LINK,
            'C' if joins else '+'),
    ]  # fmt: skip
  return '\n'.join(parts)


def _legend(genotype: genotype_lib.PyramidGenotype, y: float, width: float):
  """Draws what the colours mean; returns the drawing and its height."""
  used = {op for scale in genotype.scales for op in scale.cells}
  entries = []
  for operator, (fill, _, label) in OPERATOR_STYLES.items():
    if operator in used:
      extra = 'rx="3"'
      if operator == 'zero':
        fill = 'white'
        extra += f' stroke="{GREY}" stroke-dasharray="4 3"'
      entries.append((_rect(0, -10, 24, 14, fill, extra), operator, label))
  fixed = _rect(8, -10, 8, 14, FIXED, 'rx="2"')
  entries.append((fixed, '', 'fixed convolution'))
  if len(genotype.scales) > 1:
    verb = 'concatenated' if genotype.link == 'concat' else 'added'
    for color, marker, label in (
      (IMAGE_LINK, 'image', 'residual image, added to the input'),
      (FEATURE_LINK, 'feature', f'features, {verb}'),
    ):
      entries.append((_arrow('M0 -3H21', color, marker), '', label))
  columns = max(1, min(len(entries), int(width // 250)))
  parts = ['<g class="legend">']
  for i, (mark, operator, label) in enumerate(entries):
    x = MARGIN + (i % columns) * (width - 2 * MARGIN) / columns
    label_y = y + 22 * (i // columns)
    tip = f'<title>{operator}</title>' if operator else ''
    parts.append(
      f'<g transform="translate({x:.1f} {label_y:.1f})">{tip}{mark}'
      + _text(32, 1.5, label, 11.5, INK, 'start') + '</g>'
    )  # fmt: skip
  return '\n'.join(parts) + '\n</g>', 22 * math.ceil(len(entries) / columns)


def architecture_svg(
  genotype: genotype_lib.PyramidGenotype, *, subtitle: str = ''
) -> str:
  """Draws the architecture: a row of cells for each scale, finest at the top.

  Args:
    genotype: Network of the PyNAS space.
    subtitle: A line below the title, such as the number of parameters.

  Returns:
    A whole SVG document, for a file or a notebook.
  """
  scales = len(genotype.scales)
  top = 108 if subtitle else 88
  rows = [
    _Row(len(genotype.widths), genotype.cells_per_stage, MARGIN,
         top + 66 + i * ROW)
    for i in range(scales)
  ]  # fmt: skip
  width = max(rows[0].right + 72 + MARGIN, 640)
  legend_y = rows[-1].middle + TALLEST / 2 + 58
  legend, legend_height = _legend(genotype, legend_y, width)
  height = legend_y + legend_height + 10
  details = [
    'widths ' + '-'.join(map(str, genotype.widths)),
    genotype.upsample.replace('_', ' '),
  ]
  if genotype.global_residual:
    details.append('global residual')
  if genotype.share_weights:
    details.append('weights shared by all scales')
  if genotype.unshuffle > 1:
    details.append(f'pixels folded {genotype.unshuffle}×{genotype.unshuffle}')
  markers = ''.join(
    f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" '
    'markerWidth="6" markerHeight="6" orient="auto">'
    f'<path d="M0 0.8L9 5L0 9.2z" fill="{color}"/></marker>'
    for name, color in (
      ('grey', GREY), ('image', IMAGE_LINK), ('feature', FEATURE_LINK)
    )
  )  # fmt: skip
  scheme = genotype_lib.format_scheme(genotype.scheme)
  lines = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
    f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
    f'font-family="{FONT}">',
    f'<title>Pyramid network {scheme}</title>',
    f'<defs>{markers}</defs>',
    _rect(0, 0, width, height, 'white'),
    _text(MARGIN, 42, f'Pyramid network {scheme}', 21, INK, 'start',
          'font-weight="bold"'),
    _text(MARGIN, 64, '  ·  '.join(details), 12.5, GREY, 'start'),
    _text(MARGIN, 84, subtitle, 12.5, GREY, 'start') if subtitle else '',
    *(
      _rect(MARGIN / 2, row.middle - 66, width - MARGIN, ROW - 18, '#f7f9fb',
            'rx="8"')
      for row in rows
    ),
    *(_scale(genotype, i, row) for i, row in enumerate(rows)),
    '<g class="links">', _wires(genotype, rows), '</g>',
    legend,
    '</svg>',
  ]  # fmt: skip
  return '\n'.join(filter(None, lines)) + '\n'
