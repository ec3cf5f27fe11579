"""A folder of pairs: its files, its records, and a picture of them.

The pairs are {train,test}/SCENE/{blur,sharp}/NNNNNN.png. A line of pairs.jsonl
says how each was made; left_out.jsonl has those that were not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io
import json
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from pynas_jax import config as config_lib

PAIRS, LEFT_OUT = 'pairs.jsonl', 'left_out.jsonl'
SHEET_TILES, SHEET_COLUMNS, TILE = 32, 4, 480  # TILE is a width in pixels.
SHEET_BYTES = 1_500_000


def sides(out: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Returns the files of a pair, the blurred and the sharp one.

  Args:
    out: Folder of all pairs.
    name: Of the pair, such as 'train/dog/000005'.
  """
  scene, _, number = name.rpartition('/')
  return [out / scene / side / f'{number}.png' for side in ('blur', 'sharp')]


def write(path: pathlib.Path, data: bytes) -> None:
  """Replaces a file in one step.

  Args:
    path: In a folder that is there.
    data: All that the file is to hold.
  """
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.write_bytes(data)
  os.replace(temporary, path)


class Journal:
  """The records of what is finished: of pairs, and of pairs left out."""

  def __init__(self, out: pathlib.Path):
    """Reads the records; drops a torn line, and pairs whose files are gone."""
    self._out = out
    self._records: dict[str, dict[str, Any]] = {}
    for file in (PAIRS, LEFT_OUT):
      records = {record['name']: record for record in _read_lines(out / file)}
      for name in list(records):
        whole = all(path.is_file() for path in sides(out, name))
        if file == PAIRS and not whole:
          del records[name]
      lines = [json.dumps(record) + '\n' for record in records.values()]
      write(out / file, ''.join(lines).encode())
      self._records |= records

  def add(self, records: Sequence[dict[str, Any]]) -> int:
    """Appends records; returns how many of them are of pairs."""
    for record in records:
      # Where one crop of a frame was gone, the others are there already.
      if record['name'] not in self._records:
        self._records[record['name']] = record
        file = PAIRS if 'box' in record else LEFT_OUT
        with (self._out / file).open('a') as opened:
          opened.write(json.dumps(record) + '\n')
    return sum('box' in record for record in records)

  def find(self, names: Sequence[str]) -> list[dict[str, Any]] | None:
    """Returns the records of these names, or None if one is missing."""
    records = [self._records.get(name) for name in names]
    return None if None in records else records

  def scenes(self) -> dict[str, list[dict[str, Any]]]:
    """Returns all records by scene, such as 'train/dog', sorted."""
    scenes: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(self._records):
      scene = name.rpartition('/')[0]
      scenes.setdefault(scene, []).append(self._records[name])
    return scenes


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records in a file; what follows the last newline is torn."""
  lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
  records = []
  for i, line in enumerate(lines):
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    if not isinstance(record, dict) or 'name' not in record:
      raise config_lib.SettingError(
        f'{path}, line {i + 1} is not a record: {line[:60]!r}. Delete it; its '
        'pair is then made again.'
      )
    records.append(record)
  return records


def contact_sheet(
  out: str | os.PathLike,
  records: Sequence[Mapping[str, Any]],
  path: str | os.PathLike,
  *,
  max_bytes: int = SHEET_BYTES,
) -> None:
  """Draws pairs side by side, each blurred above sharp.

  Args:
    out: Folder of the pairs.
    records: Lines of pairs.jsonl, at least one; an even choice of too many.
    path: JPEG file to write, of the best quality that `max_bytes` allows.
    max_bytes: Most bytes of the file.
  """
  if len(records) > SHEET_TILES:
    chosen = np.linspace(0, len(records) - 1, SHEET_TILES).round().astype(int)
    records = [records[i] for i in chosen]
  font = ImageFont.load_default(18)
  tiles = []
  for record in records:
    pair = []
    for file in sides(pathlib.Path(out), record['name']):
      with Image.open(file) as image:
        image = image.convert('RGB')
        image.thumbnail((TILE, TILE * 3 // 4))
        pair.append(image)
    width, height = pair[0].size
    tile = Image.new('RGB', (TILE, 2 * height + 34), 'white')
    for i, image in enumerate(pair):
      tile.paste(image, ((TILE - width) // 2, 26 + i * (height + 2)))
    score = record['psnr_input_db']
    score = 'equal' if score is None else f'{score:.1f} dB'
    text = f'{score}   {record["name"]}'
    ImageDraw.Draw(tile).text((4, 2), text, 'black', font)
    tiles.append(tile)
  rows = [
    tiles[i : i + SHEET_COLUMNS] for i in range(0, len(tiles), SHEET_COLUMNS)
  ]
  heights = [max(tile.height for tile in row) for row in rows]
  sheet = Image.new('RGB', (TILE * len(rows[0]), sum(heights)), 'white')
  for i, row in enumerate(rows):
    for j, tile in enumerate(row):
      sheet.paste(tile, (j * TILE, sum(heights[:i])))
  for quality in range(90, 10, -10):
    data = io.BytesIO()
    sheet.save(data, 'JPEG', quality=quality)
    if data.tell() <= max_bytes:
      break
  write(pathlib.Path(path), data.getvalue())
