"""Pictures of a run, drawn from what it saved and never from live training.

Takes plain data: records of metrics.jsonl and uint8[H, W, 3] images. This
module imports no JAX, and no pyplot, whose global state notebooks own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import os
from typing import Any

from matplotlib import colormaps
from matplotlib import patches as mpl_patches
from matplotlib import ticker
from matplotlib.figure import Figure
import numpy as np

from pynas_jax.drawing import GREY
from pynas_jax.drawing import IMAGE_LINK
from pynas_jax.drawing import INK

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
STRIP = 224  # Pixels: side of the pictures in a strip.


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


def strip(images: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the part of most contrast of pictures of one scene, side by side.

  Args:
    images: u8[H, W, 3] each; the last, sharp one says where.

  Returns:
    u8[S, len(images) * S, 3]; S is STRIP pixels, or the shorter side.
  """
  size = min(STRIP, *images[-1].shape[:2])
  y, x = _busiest(images[-1], size)
  crops = [image[y : y + size, x : x + size] for image in images]
  return np.concatenate(crops, axis=1)


def side_by_side(
  rows: Sequence[Sequence[np.ndarray]],
  titles: Sequence[str],
  path: str | os.PathLike,
) -> None:
  """Draws squares in a grid, as PyNAS Figure 5: a row for each scene.

  Args:
    rows: u8[S, S, 3] each, as many as there are titles.
    titles: Of the columns.
    path: PNG file to write.
  """
  figure = Figure(
    figsize=(1.9 * len(titles), 1.9 * len(rows) + 0.3), dpi=150,
    layout='constrained',
  )  # fmt: skip
  grid = figure.subplots(len(rows), len(titles), squeeze=False)
  for r, row in enumerate(rows):
    for axes, image, title in zip(grid[r], row, titles, strict=True):
      axes.imshow(image, interpolation='nearest')
      axes.axis('off')
      if r == 0:
        axes.set_title(title, fontsize=8, color=INK)
  figure.savefig(path)


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
