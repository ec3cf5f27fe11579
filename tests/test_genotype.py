"""Genotypes are plain data: exact JSON, clear refusals, one name anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pynas_jax import genotype as genotype_lib
from pynas_jax.genotype import GenotypeError
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.genotype import ScaleGenotype


def example(**changes) -> PyramidGenotype:
  """Returns a genotype in which no field has its default."""
  cells = ('conv_3x3', 'zero')
  values = {
    'scales': (
      ScaleGenotype(1, cells, cells[::-1]),
      ScaleGenotype(3, ('sep_conv_3x3', 'conv_5x5'), cells),
    ),
    'widths': (8, 16),
    'cells_per_stage': 1,
    'upsample': 'transposed',
    'link': 'concat',
    'global_residual': False,
    'unshuffle': 2,
  }
  return PyramidGenotype(**values | changes)


def same_cells(**changes) -> PyramidGenotype:
  cells = ('conv_3x3', 'zero')
  scales = tuple(ScaleGenotype(p, cells, cells) for p in (1, 2))
  return example(scales=scales, share_weights=True, **changes)


@pytest.mark.parametrize(
  'genotype', [example(), same_cells(), genotype_lib.dmphn()],
  ids=['each', 'shared', 'dmphn'],
)  # fmt: skip
def test_json_round_trip_is_exact(genotype):
  again = genotype_lib.from_json(genotype.to_json())
  assert again == genotype
  assert hash(again) == hash(genotype)
  assert again.to_json() == genotype.to_json()
  assert again.digest() == genotype.digest()


def test_defaults_may_be_left_out_of_json():
  cells = ['zero'] * 6
  scales = [{'patches': 1, 'encoder': cells, 'decoder': cells}]
  text = json.dumps({'format': 1, 'space': 'pynas', 'scales': scales})
  assert genotype_lib.from_json(text).widths == (32, 64, 128)


def changed(path: str, value) -> str:
  """Returns the JSON of `example` with one field changed."""
  values = example().to_dict()
  target, *rest = values, *path.split('/')
  for part in rest[:-1]:
    target = target[int(part) if part.isdigit() else part]
  last = int(rest[-1]) if rest[-1].isdigit() else rest[-1]
  target[last] = value
  return json.dumps(values)


@pytest.mark.parametrize(
  ('path', 'value', 'field'),
  [
    *((path, value, path) for path, values in {
      'format': (2, 0, '1', None, True, 1.0, []),
      'space': ('pynass', None, 1, ['pynas'], {}),
      'scales': ([], 5, 'abc', {'a': 1}, True, None),
      'widths': ([], [0], [-1, 8], [2000, 8], ['8', 8], [8.0, 8], 8, None,
                 [True, 8], [8] * 7, [[8, 8]]),
      'cells_per_stage': (0, 17, 1.0, '1', None, True, []),
      'upsample': ('shuffle', None, 1, []),
      'link': ('plus', None, {}),
      'global_residual': (1, 'true', None),
      'share_weights': (0, None, True),
      'unshuffle': (0, 3, 8, 2.0, True, None),
    }.items() for value in values),
    *(('scales/1/patches', value, 'scales[*].patches') for value in (
      0, 1, 17, -2, 2.0, '2', None, True)),
    ('scales/0/patches', 2, 'scales[*].patches'),
    *(('scales/1', value, 'scales[1]') for value in (5, [], None, 'abc')),
    ('scales/0/extra', 1, 'scales[0].extra'),
    *((f'scales/1/{half}', value, f'scales[1].{half}')
      for half in ('encoder', 'decoder')
      for value in ([], ['zero'], ['zero'] * 3, 'zz', None, 5, {})),
    *(('scales/1/decoder/0', value, 'scales[1].decoder[0]') for value in (
      'conv', None, 3, ['zero'], {})),
    ('extra', 1, 'extra'),
  ],
)  # fmt: skip
def test_every_refusal_names_the_field(path, value, field):
  with pytest.raises(GenotypeError) as error:
    genotype_lib.from_json(changed(path, value))
  assert str(error.value).startswith(f'{field} ')


@pytest.mark.parametrize('field', ['format', 'space', 'scales'])
def test_missing_fields_are_named(field):
  values = example().to_dict()
  del values[field]
  with pytest.raises(GenotypeError, match=f'^{field} is '):
    genotype_lib.from_dict(values)


@pytest.mark.parametrize('field', ['patches', 'encoder', 'decoder'])
def test_missing_fields_of_a_scale_are_named(field):
  values = example().to_dict()
  del values['scales'][1][field]
  with pytest.raises(GenotypeError, match=rf'^scales\[1\].{field} is missing'):
    genotype_lib.from_dict(values)


@pytest.mark.parametrize(
  'text',
  [
    '', '{', 'null', '[]', '3', '"text"', '{"a": ' + '9' * 5000 + '}',
    '[' * 20_000, ' ' * (genotype_lib.MAX_JSON_BYTES + 1),
    changed('widths', 'X').replace('"X"', '[' * 900 + ']' * 900),
  ],
)  # fmt: skip
def test_text_that_is_no_genotype_is_refused(text):
  with pytest.raises(GenotypeError):
    genotype_lib.from_json(text)


def test_the_nearest_name_is_offered():
  with pytest.raises(GenotypeError, match="Did you mean 'conv_3x3'"):
    genotype_lib.from_json(changed('scales/0/encoder/0', 'conv_3x'))
  with pytest.raises(GenotypeError, match="Did you mean 'unshuffle'"):
    genotype_lib.from_json(changed('unshufle', 2))


def test_fields_built_in_code_are_checked_too():
  with pytest.raises(GenotypeError, match='^scales '):
    example(scales=[])
  with pytest.raises(GenotypeError, match='^widths '):
    example(widths=[8, 16])
  with pytest.raises(GenotypeError, match='^share_weights '):
    example(share_weights=True)


def test_digest_is_the_same_in_every_process():
  code = (
    'from pynas_jax import genotype as g; print(g.dmphn().digest(), '
    'g.from_json(g.dmphn((1, 3)).to_json()).digest())'
  )
  found = {
    subprocess.run(
      [sys.executable, '-c', code], check=True, capture_output=True, text=True,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path),
                        'PYTHONHASHSEED': seed},
    ).stdout
    for seed in ('0', '1', '42')
  }  # fmt: skip
  here = [genotype_lib.dmphn(scheme).digest() for scheme in
          [(1, 2, 4, 8), (1, 3)]]  # fmt: skip
  assert [text.split() for text in found] == [here]


def test_every_field_changes_the_digest():
  first = ScaleGenotype(1, ('zero', 'conv_3x3'), ('zero', 'conv_3x3'))
  changes = [
    {}, {'widths': (8, 32)}, {'upsample': 'pixel_shuffle'}, {'link': 'add'},
    {'global_residual': True}, {'unshuffle': 1}, {'scales': (first,)},
    {'widths': (8,), 'cells_per_stage': 2},
  ]  # fmt: skip
  digests = {example(**change).digest() for change in changes}
  digests |= {same_cells().digest()}
  assert len(digests) == len(changes) + 1


def test_describe_says_what_differs():
  text = same_cells().describe()
  for part in (
    'pynas', '1-2', '8-16', 'transposed', 'concat', 'shared weights',
    'unshuffle 2', 'conv_3x3', 'zero',
  ):  # fmt: skip
    assert part in text
  assert len(text.splitlines()) == 3
  assert 'global residual' in example(global_residual=True).describe()


def test_dmphn_is_a_point_of_the_space():
  genotype = genotype_lib.dmphn()
  assert genotype.scheme == (1, 2, 4, 8)
  assert genotype.widths == (32, 64, 128)
  assert set(genotype.scales[3].cells) == {'conv_3x3_x2'}
  assert len(genotype.scales[0].cells) == 12
  assert not genotype.global_residual
  assert not genotype.share_weights


def test_schemes_are_inside_the_limits_and_all_of_them():
  schemes = genotype_lib.all_schemes()
  assert len(set(schemes)) == len(schemes)
  for scheme in schemes:
    genotype_lib.check_scheme(scheme)
    text = genotype_lib.format_scheme(scheme)
    assert genotype_lib.parse_scheme(text) == scheme
  assert {(1, 2, 4, 8), (1, 16), (1, 3, 9), (1, 2, 4, 16)} <= set(schemes)


@pytest.mark.parametrize(
  'text', ['', '2-4', '1-1', '1-2-3', '1-4-2', '1-32', '1-2-4-8-16', '1-0',
           '1--2', 'a', '1-2.0', '1,2', 12, None],
)  # fmt: skip
def test_other_schemes_are_refused(text):
  with pytest.raises(GenotypeError, match='^scheme is '):
    genotype_lib.parse_scheme(text)
