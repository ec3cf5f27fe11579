"""Settings: one list, typos and bad values refused before any work."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pynas_jax import config as config_lib
from pynas_jax.config import SettingError
from pynas_jax.data import files


@pytest.mark.parametrize(
  'settings',
  [
    config_lib.base(),
    config_lib.paper(),
    config_lib.paper(odd=False),
    config_lib.shrink(config_lib.base()),
    config_lib.shrink(config_lib.paper()),
    config_lib.hinas('denoise', sigma=30.0),
    config_lib.hinas('super_resolution', scale=3),
    config_lib.shrink(config_lib.hinas('super_resolution', scale=2)),
  ],
  ids=[
    'base', 'paper', 'paper_even', 'shrunk', 'shrunk_paper', 'hinas',
    'hinas_sr', 'shrunk_hinas',
  ],
)
def test_our_own_settings_are_valid(settings):
  config_lib.validate(settings)
  names = config_lib.flatten(config_lib.base())
  assert config_lib.flatten(settings).keys() == names.keys()
  assert json.loads(config_lib.to_json(settings))['train']['lr'] > 0


def test_every_checked_name_is_a_setting():
  names = config_lib.flatten(config_lib.base())
  assert set(config_lib.CHOICES) | set(config_lib.POSITIVE) <= set(names)
  assert len(set(config_lib.POSITIVE)) == len(config_lib.POSITIVE)


@pytest.mark.parametrize('name', config_lib.POSITIVE)
@pytest.mark.parametrize('value', [0, -1])
def test_numbers_that_must_be_positive(name, value):
  settings = config_lib.override(config_lib.base(), {name: value})
  with pytest.raises(SettingError, match=f'^{name} is {value}'):
    config_lib.validate(settings)


@pytest.mark.parametrize('name', config_lib.CHOICES)
def test_choices_are_closed_and_name_the_nearest(name):
  choice = config_lib.CHOICES[name][-1]
  settings = config_lib.override(config_lib.base(), {name: choice + 'x'})
  with pytest.raises(SettingError, match=f'^{name} is .*mean {choice!r}'):
    config_lib.validate(settings)
  for choice in config_lib.CHOICES[name]:
    changes = {name: choice, 'data.root': 'somewhere'}
    if choice in ('super_resolution', 'jpeg', 'hinas'):
      changes |= {'space': 'hinas', 'data.jpeg_quality': (10, 40)}
      changes |= {'search.refine_passes': 0}
    if choice == 'int8':
      changes |= {'mode': 'benchmark'}
    changes[name] = choice
    config_lib.validate(config_lib.override(config_lib.base(), changes))


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('seed', -1), ('seed', 2**32),
    ('search.warmup_steps', -1), ('search.clip_norm', -0.5),
    ('train.clip_norm', math.nan), ('data.noise_sigma', -1.0),
    ('data.noise_sigma', 101.0),
    ('train.ema_decay', 1.0), ('train.ema_decay', -0.1),
    ('search.momentum', 1.5), ('data.validation_fraction', 1.0),
    ('search.collapse_fraction', 0.0), ('search.collapse_fraction', 1.1),
    ('train.decay_rate', 0.0), ('train.decay_rate', 2.0),
    ('train.lr', math.nan), ('train.lr', math.inf),
    ('data.kernel_size', 4), ('data.kernel_size', 0),
    ('data.kernel_size', -3),
    ('search.schemes', ('1-2', '2-4')), ('search.schemes', ('',)),
    ('search.schemes', (12,)), ('search.schemes', ('1-2-4-8-16',)),
    ('model.candidates', ()), ('model.candidates', ('zero', 'zero')),
    ('model.candidates', ('conv_3x',)), ('model.candidates', (['zero'],)),
    ('model.candidates', (3,)),
    ('model.widths', ()), ('model.widths', (0,)), ('model.widths', ('8',)),
    ('model.widths', (8.5,)), ('model.widths', (4096,)),
    ('model.cells_per_stage', 17), ('model.unshuffle', 3),
    ('search.base_widths', (256, 257)), ('search.base_widths', (2.0,)),
    ('search.unshuffles', (2.0,)), ('search.unshuffles', (True,)),
    ('data.jpeg_quality', (True, 60)),
    ('hinas.candidates', ('skip', 'zero')), ('hinas.candidates', ('conv',) * 3),
    ('hinas.width_factors', ()), ('hinas.width_factors', (0.01,)),
    ('hinas.nodes', 17), ('hinas.sep_repeats', 5), ('hinas.layers', 65),
    ('data.alpha_fraction', 1.0), ('search.weight_decay', -1.0),
  ],
)  # fmt: skip
def test_bad_values_are_refused_and_named(name, value):
  settings = config_lib.override(config_lib.base(), {name: value})
  with pytest.raises(SettingError) as error:
    config_lib.validate(settings)
  group = name.partition('.')[0]
  leaf = name.rpartition('.')[2]
  assert group in str(error.value)
  assert leaf in str(error.value) or 'scales' in str(error.value)


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'task': 'super_resolution'}, "^space is 'pynas'"),
    ({'benchmark.dtype': 'int8'}, '^benchmark.dtype is .*expected float32'),
    (
      {'search.estimator': 'two_path', 'model.candidates': ('conv_3x3',)},
      "2 or more for 'two_path'",
    ),
    (
      {
        'space': 'hinas', 'search.refine_passes': 0, 'search.base_widths': (8,)
      },
      'search.base_widths is .* for the space',
    ),
    (
      {'task': 'super_resolution', 'space': 'hinas', 'data.scale': 5},
      '^data.scale is 5',
    ),
    (
      {'task': 'super_resolution', 'space': 'hinas', 'data.crop': 62},
      '^data.crop is 62; expected a multiple of data.scale, 4',
    ),
    ({'task': 'jpeg'}, '^data.jpeg_quality'),
    ({'space': 'hinas', 'search.cost': 'macs'}, '^search.cost'),
    (
      {'space': 'hinas', 'search.refine_passes': 0, 'train.inherit': False,
       'search.local_trials': 2}, "^search.local_trials is 2.*'hinas'",
    ),
    ({'search.local_trials': 2}, '^search.local_trials is 2.*train.inherit'),
    ({'space': 'hinas'}, '^search.refine_passes is 1; expected 0'),
  ],
)
def test_settings_that_cannot_be_together(changes, match):
  settings = config_lib.override(config_lib.base(), changes)
  with pytest.raises(SettingError, match=match):
    config_lib.validate(settings)


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({}, 'deblurring'),
    ({'task': 'denoise', 'data.noise_sigma': 12.5}, 'denoising, sigma 12.5'),
    ({'task': 'denoise', 'data.grey': True}, 'denoising, grey'),
    ({'task': 'denoise', 'data.noise_sigma': 30.0, 'data.noise_clip': False},
     'denoising, sigma 30, unclipped'),
    ({'task': 'jpeg', 'data.jpeg_quality': (10, 40)},
     'JPEG artifacts, quality 10 to 40'),
  ],
)  # fmt: skip
def test_tasks_are_described_with_how_much_there_is_to_do(changes, text):
  settings = config_lib.override(config_lib.base(), changes)
  assert config_lib.describe_task(settings) == text


def test_a_folder_needs_a_root():
  settings = config_lib.override(config_lib.base(), {'data.name': 'folder'})
  with pytest.raises(SettingError, match=r"^data.root is ''"):
    config_lib.validate(settings)


@pytest.mark.parametrize('subset', files.PARTNERS)
def test_every_folder_of_inputs_can_be_the_subset(subset):
  changes = {'data.name': 'folder', 'data.root': 'x', 'data.subset': subset}
  config_lib.validate(config_lib.override(config_lib.base(), changes))


def test_settings_that_do_not_exist_are_refused():
  settings = config_lib.base()
  settings.train.num_step = 5
  with pytest.raises(SettingError, match="mean 'train.num_steps'"):
    config_lib.validate(settings)
  settings = config_lib.base()
  del settings.train.lr
  with pytest.raises(SettingError, match='train.lr is missing'):
    config_lib.validate(settings)


def test_overrides_dotted_and_nested():
  settings = config_lib.override(
    config_lib.base(),
    {
      'train.num_steps': 7,
      'search': {'tau_start': 2, 'schemes': ['1-3']},
      'seed': np.int64(5),
    },
  )
  assert settings.train.num_steps == 7
  assert settings.search.tau_start == 2.0
  assert isinstance(settings.search.tau_start, float)
  assert settings.search.schemes == ('1-3',)
  assert settings.seed == 5
  assert json.loads(config_lib.to_json(settings))['seed'] == 5
  assert config_lib.base().train.num_steps != 7


@pytest.mark.parametrize(
  ('values', 'near'),
  [
    ({'train.num_step': 1}, 'train.num_steps'),
    ({'train': {'nmu_steps': 1}}, 'train.num_steps'),
    ({'search.aplha_lr': 1.0}, 'search.alpha_lr'),
    ({'sed': 1}, 'seed'),
  ],
)
def test_typos_name_the_nearest_setting(values, near):
  with pytest.raises(SettingError, match=f'Did you mean {near!r}'):
    config_lib.override(config_lib.base(), values)


@pytest.mark.parametrize(
  ('name', 'value', 'expected'),
  [
    ('train.num_steps', 8.5, 'a whole number'),
    ('train.num_steps', 8.0, 'a whole number'),
    ('train.num_steps', '8', 'a whole number'),
    ('train.num_steps', True, 'a whole number'),
    ('train.num_steps', None, 'a whole number'),
    ('train.lr', '1e-3', 'a number'),
    ('train.lr', False, 'a number'),
    ('train.inherit', 1, 'true or false'),
    ('train.loss', 3, 'text'),
    ('model.widths', 16, 'a tuple'),
    ('model.widths', '16', 'a tuple'),
    ('model.widths', None, 'a tuple'),
    ('model.widths', {16}, 'a tuple'),
  ],
)
def test_wrong_types_are_refused(name, value, expected):
  with pytest.raises(SettingError, match=f'^{name} is .*; expected {expected}'):
    config_lib.override(config_lib.base(), {name: value})


def test_a_group_is_no_setting():
  with pytest.raises(SettingError, match="'train' is not a setting"):
    config_lib.override(config_lib.base(), {'train': 5})


def test_variants_name_the_nearest():
  variants = {'': 1, 'gopro': 2, 'smoke': 3}
  assert config_lib.variant('', variants) == 1
  assert config_lib.variant('gopro', variants) == 2
  with pytest.raises(SettingError, match="'gopr0'.*Did you mean 'gopro'"):
    config_lib.variant('gopr0', variants)
