"""Pictures of a run, drawn from what it saved and never from live training.

Takes plain data: genotypes, records of metrics.jsonl and uint8[H, W, 3] images.
This module imports no JAX, and no pyplot, whose global state notebooks own. The
networks it draws are those of PyNAS sections 2.2 and 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import os
from typing import Any
from xml.sax import saxutils

from matplotlib import colormaps
from matplotlib import patches as mpl_patches
from matplotlib import ticker
from matplotlib.figure import Figure
import numpy as np

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
INK, GREY, PALE, FIXED = '#1f2933', '#66727f', '#eef1f5', '#c5ccd6'
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


# Last part of a figure's name -> title of its panel.
PANELS = {
  'loss': 'training loss',
  'psnr': 'validation PSNR, dB',
  'entropy': 'entropy of the gates',
  'temperature': 'gate temperature',
}
ALIASES = {'tau': 'temperature'}


def _series(records: Sequence[Mapping[str, Any]]):
  """Returns {group: {panel: {label: [(step, value), ...]}}}."""
  groups: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = {}
  for record in records:
    stage, step = str(record.get('stage', '')), record.get('step')
    if step is None:
      continue
    group, _, label = stage.partition('/')
    for name, value in record.items():
      panel = name.rpartition('/')[2]
      panel = ALIASES.get(panel, panel)
      if panel not in PANELS or not isinstance(value, (int, float)):
        continue
      if not math.isfinite(value):
        continue
      lines = groups.setdefault(group, {}).setdefault(panel, {})
      lines.setdefault(label, []).append((step, value))
  return groups


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
  """Returns the mean over up to `window` values before and at each value."""
  sums = np.cumsum(np.concatenate([[0.0], values]))
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(ends - window, 0)
  return (sums[ends] - sums[starts]) / (ends - starts)


def _polish(axes) -> None:
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(color='#e3e7ec', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(labelsize=8, color=GREY, labelcolor=GREY)


def _draw(axes, lines, colors) -> None:
  for label, points in lines.items():
    steps, values = np.array(sorted(points), dtype=float).T
    color, many = colors[label], len(values) > 60
    if many:
      axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
      values = _smooth(values, len(values) // 20)
    axes.plot(
      steps, values, color=color, linewidth=1.6, label=label,
      marker='' if len(values) > 30 else 'o', markersize=3.5,
    )  # fmt: skip


def curves(
  records: Sequence[Mapping[str, Any]], path: str | os.PathLike
) -> None:
  """Draws loss, validation PSNR and the gates' entropy and temperature.

  There is a column of panels for each part of the run (search, train) and a
  line for each of its stages. Figures that were not recorded are left out.

  Args:
    records: What `logbook.read_records` returns.
    path: PNG file to write.
  """
  groups = _series(records)
  panels = [p for p in PANELS if any(p in g for g in groups.values())]
  if not panels:
    figure = Figure(figsize=(6, 2), dpi=120)
    figure.text(0.5, 0.5, 'no figures recorded yet', ha='center', color=GREY)
    figure.savefig(path)
    return
  labels = {  # In order of appearance.
    name: list(dict.fromkeys(sum(map(list, group.values()), [])))
    for name, group in groups.items()
  }
  most = max(map(len, labels.values()))
  legend_height = 0.17 * math.ceil(most / 3) + 0.2 if most > 1 else 0.0
  size = (5.2 * len(groups) + 0.4, 2.3 * len(panels) + legend_height + 0.5)
  figure = Figure(figsize=size, dpi=120, layout='constrained')
  # The legends have a row of their own, so that they hide no line.
  ratios = [2.3] * len(panels) + ([legend_height] if legend_height else [])
  grid = figure.add_gridspec(len(ratios), len(groups), height_ratios=ratios)
  for column, (group, lines) in enumerate(groups.items()):
    wheel = _wheel(len(labels[group]))
    colors = dict(zip(labels[group], wheel, strict=True))
    shown = [panel for panel in panels if panel in lines]
    for row, panel in enumerate(shown):
      axes = figure.add_subplot(grid[row, column])
      _polish(axes)
      _draw(axes, lines[panel], colors)
      title = f'{group}: {PANELS[panel]}'
      axes.set_title(title, fontsize=10, color=INK, loc='left')
      if row == len(shown) - 1:
        axes.set_xlabel('steps', fontsize=8.5, color=GREY)
      values = [v for points in lines[panel].values() for _, v in points]
      if panel == 'loss' and min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale('log')
      else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
      axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    if len(labels[group]) > 1:
      axes = figure.add_subplot(grid[len(panels), column])
      axes.axis('off')
      handles = [
        mpl_patches.Patch(color=colors[label], label=label or group)
        for label in labels[group]
      ]
      axes.legend(
        handles=handles, fontsize=7.5, frameon=False, loc='upper left',
        ncols=3, borderaxespad=0, handlelength=1.2,
        handleheight=0.5,
      )  # fmt: skip
  figure.savefig(path)


def trade_off(
  points: Sequence[Mapping[str, Any]],
  path: str | os.PathLike,
  *,
  x: str,
  x_label: str,
  real_time: float = 0.0,
) -> None:
  """Draws score against cost: PyNAS Figures 1 and 4, or the trials of a search.

  Args:
    points: With `name`, `psnr` in dB, the cost under the key `x`, and whether
      they are `published` by others (hollow) or on the `front` (joined).
    path: PNG file to write.
    x: Name of the cost.
    x_label: Of the horizontal axis, with the unit.
    real_time: Cost up to which video is restored as fast as it plays; the zone
      is shaded. 0 draws none.
  """
  figure = Figure(figsize=(6.4, 4.4), dpi=120, layout='constrained')
  axes = figure.add_subplot()
  _polish(axes)
  if real_time:
    axes.axvspan(0, real_time, color='#2f8a4c', alpha=0.08, lw=0)
    axes.text(
      0.02, 0.98, f'real time, {real_time:g} ms', fontsize=8, color='#2f8a4c',
      va='top', transform=axes.transAxes,
    )  # fmt: skip
  edge = sorted((p for p in points if p.get('front')), key=lambda p: p[x])
  axes.plot(
    [p[x] for p in edge], [p['psnr'] for p in edge], color=IMAGE_LINK, lw=1.2,
    zorder=2,
  )  # fmt: skip
  for point in points:
    published = point.get('published', False)
    axes.scatter(
      point[x], point['psnr'], s=34, zorder=3, color=IMAGE_LINK,
      facecolors='white' if published else IMAGE_LINK,
    )  # fmt: skip
    axes.annotate(
      point['name'], (point[x], point['psnr']), xytext=(5, 4), fontsize=7.5,
      textcoords='offset points', color=GREY if published else INK,
    )  # fmt: skip
  costs = [point[x] for point in points]
  if min(costs) > 0 and max(costs) > 20 * min(costs):
    axes.set_xscale('log')
  axes.set_xlabel(x_label, fontsize=9, color=INK)
  axes.set_ylabel('PSNR, dB', fontsize=9, color=INK)
  figure.savefig(path)


def _wheel(count: int) -> list[Any]:
  """Returns distinct colours: the operators' for a few, else a gradient."""
  few = ['#2f6db3', '#cf5c0a', '#2f8a4c', '#8a56ac', '#0f7b83', '#b3362f']
  if count <= len(few):
    return few[:count]
  return list(colormaps['turbo'](np.linspace(0.05, 0.95, count)))


MAX_CROP = 480  # Pixels: shown about one to one.
ZOOM = 3  # Of the detail.


def _busiest(image: np.ndarray, size: int) -> tuple[int, int]:
  """Returns top and left of the square window with the most contrast."""
  grey = image.astype(np.float64).mean(axis=2)
  energy = np.zeros_like(grey)
  energy[1:] += np.abs(np.diff(grey, axis=0))
  energy[:, 1:] += np.abs(np.diff(grey, axis=1))
  sums = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
  windows = (
    sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size]
    + sums[:-size, :-size]
  )  # fmt: skip
  top, left = np.unravel_index(windows.argmax(), windows.shape)
  return int(top), int(left)


def samples(
  rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
  path: str | os.PathLike,
  *,
  captions: Sequence[tuple[str, str, str]] | None = None,
) -> None:
  """Draws blurry, restored and sharp pictures side by side, with a detail.

  The part shown and its detail lie where the sharp picture has most contrast.

  Args:
    rows: Name, blurry, restored and sharp uint8[H, W, 3]; sizes may differ
      from row to row.
    path: PNG file to write.
    captions: Texts below the three pictures of each row, such as '31.2 dB'.

  Raises:
    ValueError: If there are no rows, or the pictures of one differ in shape.
  """
  if not rows:
    raise ValueError('samples got no rows; expected at least one picture.')
  for name, *images in rows:
    shapes = [image.shape for image in images]
    if len(set(shapes)) > 1 or len(shapes[0]) != 3:
      raise ValueError(
        f'samples got {name!r} with shapes {shapes}; expected three pictures '
        'of one shape (H, W, 3).'
      )
  height = min(MAX_CROP, *(images[0].shape[0] for _, *images in rows))
  width = min(MAX_CROP, *(images[0].shape[1] for _, *images in rows))
  detail = max(1, round(min(height, width) * 0.42 / ZOOM))
  captions = captions or [('', '', '')] * len(rows)
  inches = 3.3
  picture = inches * height / width
  top, below, gap = 0.34, 0.34, 0.07
  left = 0.3
  total_width = left + 3 * inches + 2 * gap + 0.07
  total_height = top + len(rows) * (picture + below)
  figure = Figure(figsize=(total_width, total_height), dpi=150)

  def place(x, y, w, h):
    return figure.add_axes(
      (x / total_width, 1 - (y + h) / total_height, w / total_width,
       h / total_height)
    )  # fmt: skip

  for r, ((name, *images), texts) in enumerate(
    zip(rows, captions, strict=True)
  ):
    sharp = images[2]
    spot_y, spot_x = _busiest(sharp, detail)
    crop_y = int(np.clip(spot_y - height // 4, 0, sharp.shape[0] - height))
    crop_x = int(np.clip(spot_x - width // 4, 0, sharp.shape[1] - width))
    y = top + r * (picture + below)
    figure.text(
      0.5 * left / total_width, 1 - (y + picture / 2) / total_height, name,
      rotation=90, ha='center', va='center', fontsize=8, color=GREY,
    )  # fmt: skip
    for c, (image, text) in enumerate(zip(images, texts, strict=True)):
      x = left + c * (inches + gap)
      axes = place(x, y, inches, picture)
      axes.axis('off')
      crop = image[crop_y : crop_y + height, crop_x : crop_x + width]
      axes.imshow(crop, aspect='auto')
      if r == 0:
        axes.set_title(
          ('blurry', 'restored', 'sharp')[c], fontsize=11, color=INK, pad=5
        )
      corner = (spot_x - crop_x - 0.5, spot_y - crop_y - 0.5)
      frame = mpl_patches.Rectangle(
        corner, detail, detail, fill=False, edgecolor='#ffd23f', linewidth=1.2
      )
      axes.add_patch(frame)
      side = inches * detail * ZOOM / width
      # In the corner opposite to the detail, so that it never hides it.
      right = corner[0] + detail / 2 < width / 2
      low = corner[1] + detail / 2 < height / 2
      inset = place(
        x + (inches - side - 0.03 if right else 0.03),
        y + (picture - side - 0.03 if low else 0.03), side, side,
      )  # fmt: skip
      inset.imshow(
        image[spot_y : spot_y + detail, spot_x : spot_x + detail],
        interpolation='nearest',
      )
      inset.set_xticks([])
      inset.set_yticks([])
      for spine in inset.spines.values():
        spine.set(edgecolor='#ffd23f', linewidth=1.2)
      figure.text(
        (x + inches / 2) / total_width, 1 - (y + picture + 0.17) / total_height,
        text, ha='center', va='center', fontsize=9, color=INK,
      )  # fmt: skip
  figure.savefig(path)
