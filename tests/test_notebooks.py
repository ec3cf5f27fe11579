"""The notebooks run from the first cell to the last, as in Colab."""

from __future__ import annotations

import pathlib

import nbclient
import nbformat
import pytest

# Cell after the one tagged 'parameters', so that seconds are enough.
PARAMETERS = {
  'deblur': '',
  'search': 'from pynas_jax import config\n'
  'SETTINGS = config.flatten(config.shrink(config.base()))',
}
PICTURES = {'deblur': 3, 'search': 6}


@pytest.mark.parametrize('name', PARAMETERS)
def test_notebooks_run(
  name: str, root: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  path = root / 'experiments' / 'notebooks' / f'{name}.ipynb'
  notebook = nbformat.read(path, as_version=4)
  codes = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert not any(cell.outputs or cell.execution_count for cell in codes)
  (at,) = [
    i
    for i, cell in enumerate(notebook.cells)
    if 'parameters' in cell.metadata.get('tags', ())
  ]
  given = nbformat.v4.new_code_cell(PARAMETERS[name])
  notebook.cells.insert(at + 1, given)
  nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(tmp_path)}}
  ).execute()
  outputs = [
    output for cell in notebook.cells for output in cell.get('outputs', ())
  ]
  pictures = [
    output
    for output in outputs
    if any(kind.startswith('image/') for kind in output.get('data', ()))
  ]
  assert len(pictures) == PICTURES[name]
  said = ''.join(output.get('text', '') for output in outputs)
  assert '\r' in said and '2/2  0:00:' in said
  assert 'Warning' not in str(outputs)
