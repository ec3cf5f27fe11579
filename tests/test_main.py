"""The command line, as people type it, in processes of its own."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest

from pynas_jax import api
from pynas_jax import command
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import logbook
from pynas_jax import main
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.deploy import restorer
from pynas_jax.deploy.release import Card
from pynas_jax.search import hierarchical

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
VARIANTS = {
  'search': ('', 'gopro', 'gopro_s', 'box', 'tiny'),
  'train': ('', 'gopro', 'video_deblurring', 'dmphn', 'box', 'tiny'),
  'evaluate': ('', 'gopro'),
  'benchmark': (),
  'pipeline': ('demo', 'gopro', 'gopro_s', 'tiny'),
}
KEYS = (
  'genotype', 'params', 'gmacs_720p', 'dataset', 'psnr_input', 'psnr',
  'psnr_float', 'ssim_input', 'ssim', 'ssim_3d', 'search_seconds',
  'train_seconds', 'latency_720p_ms', 'versions', 'commit', 'seed',
)  # fmt: skip


def start(*args, cwd=ROOT, **popen) -> subprocess.Popen:
  # One device: what a laptop has.
  env = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
  return subprocess.Popen(
    [sys.executable, '-m', 'pynas_jax.main', *map(str, args)], cwd=cwd,
    env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    **popen,
  )  # fmt: skip


def run(*args, **popen) -> tuple[int, str]:
  process = start(*args, **popen)
  output, _ = process.communicate()
  return process.returncode, output


def load_config(name):
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


def test_every_config_file_is_known_here():
  assert [path.stem for path in CONFIGS] == sorted(VARIANTS)


@pytest.mark.parametrize('flag', [['--config={}'], ['--config', '{}']])
def test_config_files_are_found_from_any_folder(flag, tmp_path):
  """A user's own file of that name comes first."""
  flags = [part.format('configs/evaluate.py') for part in flag]
  flags.append('--config.checkpoint=nowhere')
  status, said = run(*flags, cwd=tmp_path)
  assert status == 2 and 'nowhere' in said, said
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'evaluate.py').write_text('')
  status, said = run(*flags, cwd=tmp_path)
  assert status == 2 and 'has no get_config()' in said, said


def test_errors_of_a_config_file_keep_their_place(tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config():\n  return {}["x"]\n')
  status, said = run('--config=mine.py', cwd=tmp_path)
  assert status == 1 and 'mine.py", line 2' in said, said


def test_a_config_file_of_something_else_is_not_told_to_be_meant(tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config():\n  return 3\n')
  status, said = run('--config=mine.py', cwd=tmp_path)
  assert status == 2 and "--config is 'mine.py'" in said, said
  assert 'Did you mean' not in said, said


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant_is_valid_and_others_are_refused(name):
  get_config = load_config(name)
  if not VARIANTS[name]:
    config_lib.validate(get_config())
    return
  for variant in VARIANTS[name]:
    c = get_config(variant)
    config_lib.validate(c)
    assert c.mode == name
  with pytest.raises(config_lib.SettingError, match='expected one of'):
    get_config('gopor')


def test_paper_settings():
  """PyNAS section 3.2, in steps of GoPro's 1893 training pairs."""
  c = load_config('search')('gopro')
  epoch = 1893 // 32
  assert c.search.num_steps - c.search.warmup_steps == 80 * epoch
  assert (c.search.batch_size, c.search.weight_lr) == (32, 5e-4)
  assert c.search.optimizer == 'sgd'
  assert (c.search.alpha_lr, c.data.validation_fraction) == (1e-3, 0.1)
  c = load_config('train')('gopro')
  assert (c.train.batch_size, c.train.lr, c.train.loss) == (6, 1e-4, 'mse')
  assert c.train.optimizer == 'adam'
  assert c.train.num_steps == 3000 * (1893 // 6)
  assert (c.data.crop, c.train.decay_rate) == (288, 0.1)
  assert load_config('search')('gopro_s').model.share == 'weights'


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--config=configs/search.py:gopor'], ["'gopor'", "'gopro'"]),
    (
      ['--config=configs/search.py:tiny', '--config.train.num_stpes=3'],
      ['train.num_stpes', "'train.num_steps'"],
    ),
    (
      ['--config=configs/search.py:tiny', '--config.trian.num_steps=3'],
      ["'trian.num_steps' is not a setting", "'train.num_steps'"],
    ),
    (
      ['--config=configs/search.py:tiny', '--config.search.estimator=gumbel'],
      ['search.estimator', "'gumbel'", 'one_path'],
    ),
    (
      ['--config=configs/search.py:tiny', '--config.search.batch_size=x'],
      ['batch_size', 'x'],
    ),
    (['--config=configs/serch.py'], ['configs/serch.py', 'configs/search.py']),
    (['--confg=configs/search.py'], ['confg', 'config']),
    ([], ['--config is missing']),
    (
      ['--config=configs/search.py:gopro'],
      ['GOPRO_Large/{train,test}', 'data.root', '2103 train'],
    ),
    (
      ['--config=configs/evaluate.py', '--config.checkpoint=nowhere'],
      ['nowhere'],
    ),
    (
      ['--config=configs/evaluate.py', '--config.genotype=dmphn'],
      ['genotype', "'dmphn'", 'checkpoint'],
    ),
    (
      ['--config=configs/train.py', '--config.genotype=nowhere.json'],
      ['nowhere.json'],
    ),
    (
      ['--config=configs/train.py', '--config.train.start_from=nowhere'],
      ['nowhere'],
    ),
  ],
  ids=lambda value: value[-1] if value else 'none',
)  # fmt: skip
def test_bad_input_stops_with_status_2_and_the_way_out(args, words, tmp_path):
  status, output = run(*args, f'--workdir={tmp_path / "run"}')
  assert status == 2, output
  assert 'Traceback' not in output
  for word in words:
    assert word in output
  assert not (tmp_path / 'run').exists()


def test_a_workdir_below_a_file_ends_with_status_1(tmp_path):
  (tmp_path / 'file').touch()
  status, output = run(
    '--config=configs/benchmark.py', '--config.genotype=dmphn-1-2',
    f'--workdir={tmp_path / "file" / "run"}',
  )  # fmt: skip
  assert status == 1
  assert output.startswith('Error: ')
  assert str(tmp_path / 'file') in output
  assert 'timing' not in output


def read_arrays(directory, item):
  """Returns the newest checkpoint's arrays by path."""
  with Checkpoints(directory) as checkpoints:
    step = checkpoints.latest()
    _, found = checkpoints._read(step, [item])
  return step, found[item]


def assert_same_run(a: pathlib.Path, b: pathlib.Path, stages):
  for stage in stages:
    (step, left), (other, right) = (
      read_arrays(workdir / stage, 'state') for workdir in (a, b)
    )
    assert step == other
    assert left.keys() == right.keys()
    for path in left:
      np.testing.assert_array_equal(left[path], right[path], err_msg=path)
  found = [(workdir / 'genotype.json').read_text() for workdir in (a, b)]
  assert found[0] == found[1]
  records = [logbook.read_records(workdir) for workdir in (a, b)]
  for record in records[0] + records[1]:
    record.pop('data/wait_fraction', None)  # Of time, which no seed decides.
  assert records[0] == records[1]


@pytest.mark.parametrize(
  'scheme', ['1', pytest.param('1-2', marks=pytest.mark.slow)]
)
def test_killed_search_and_training_end_as_if_never_stopped(tmp_path, scheme):
  """SIGKILL in the search and in the training, then the same command again."""
  settings = [
    '--config=configs/pipeline.py:tiny',
    f"--config.search.schemes=('{scheme}',)", '--config.search.num_steps=8',
    '--config.search.patience=9', '--config.train.num_steps=10',
    '--config.search.collapse_fraction=1.0',
  ]  # fmt: skip
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  status, output = run(*settings, f'--workdir={whole}')
  assert status == 0, output

  for stage, step in (('search/trial0/scale1', 4), ('train', 4)):
    process = start(*settings, f'--workdir={broken}')
    while process.poll() is None:
      records = logbook.read_records(broken)
      if any(r['stage'] == stage and r['step'] >= step for r in records):
        break
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert not (broken / 'report.json').exists()
  status, output = run(*settings, f'--workdir={broken}')
  assert status == 0, output
  scales = range(1, 1 + len(genotype_lib.parse_scheme(scheme)))
  stages = [f'search/trial0/scale{i}' for i in scales]
  assert_same_run(whole, broken, (*stages, 'checkpoints'))
  trials = [
    json.loads((workdir / 'trials.jsonl').read_text())
    for workdir in (whole, broken)
  ]
  for trial in trials:
    trial.pop('seconds')
    trial.pop('latency_ms')
  assert trials[0] == trials[1]

  # What a run leaves, and what its report says.
  for name in (
    'config.json', 'genotype.json', 'architecture.svg', 'metrics.jsonl',
    'pareto.csv', 'pareto.png',
    'curves.png', 'samples.png', 'report.json', 'scores.json',
  ):  # fmt: skip
    assert (whole / name).stat().st_size, name
  assert list((whole / 'tensorboard').rglob('events.out.tfevents.*'))
  report = json.loads((whole / 'report.json').read_text())
  assert set(KEYS) <= set(report)
  assert {'p50', 'p95', 'compile_s', 'device', 'dtype', 'runs'} <= set(
    report['latency_720p_ms']
  )
  genotype = genotype_lib.from_json((whole / 'genotype.json').read_text())
  assert report['genotype'] == genotype.to_dict()

  # Other settings in the same workdir are refused, and nothing is lost.
  before = (whole / 'report.json').read_bytes()
  status, output = run(
    *settings, '--config.train.lr=0.5', f'--workdir={whole}'
  )
  assert status == 2
  assert 'train.lr was 0.002, is 0.5' in output
  assert (whole / 'report.json').read_bytes() == before

  # The other commands take the network from there.
  status, output = run(
    '--config=configs/benchmark.py', f'--config.checkpoint={whole}',
    '--config.benchmark.height=48', '--config.benchmark.width=64',
    '--config.benchmark.runs=3', f'--workdir={tmp_path / "benchmark"}',
  )  # fmt: skip
  assert status == 0, output
  timing = json.loads((tmp_path / 'benchmark' / 'benchmark.json').read_text())
  assert {t['runs'] for t in timing['timings']} == {3}
  assert 'xla' in {t['backend'] for t in timing['timings']}


def make_folder(root, num_pairs=4):
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for folder in ('blur', 'sharp'):
      (root / split / folder).mkdir(parents=True)
    for i in range(num_pairs):
      sharp = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
      Image.fromarray(sharp).save(root / split / 'sharp' / f'{i}.png')
      Image.fromarray(sharp // 2).save(root / split / 'blur' / f'{i}.png')


def test_api_searches_trains_and_restores_a_folder_of_pairs(tmp_path):
  """As in a notebook: no flags, settings as keyword arguments."""
  make_folder(tmp_path / 'pairs')
  config = config_lib.shrink(config_lib.base())
  workdir = tmp_path / 'run'
  result = api.derive_and_train(
    config, workdir=workdir, model={'share': 'cells'},
    search={'batch_size': 4, 'estimator': 'two_path'},
    train={'batch_size': 4, 'inherit': False},
    data={'name': 'folder', 'root': str(tmp_path / 'pairs'), 'eval_crop': 32},
  )  # fmt: skip
  assert result.report['dataset'] == 'folder'
  assert result.metrics['psnr_input'] < 20
  assert len({scale.cells for scale in result.genotype.scales}) == 1
  image = np.zeros((21, 17, 3), np.uint8)
  assert result.restore(image).shape == image.shape
  assert result.benchmark(height=16, width=16, runs=1)['runs'] == 1
  saved = api.load(result.save(tmp_path / 'saved'))
  np.testing.assert_array_equal(saved(image), result.restore(image))
  report = json.loads((tmp_path / 'saved' / 'report.json').read_text())
  assert report == json.loads((workdir / 'report.json').read_text())
  # Twice the same weights from disk: a workdir is a checkpoint too.
  loaded = restorer.load(workdir)
  jax.tree.map(
    np.testing.assert_array_equal, loaded.params, result.restorer.params
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Settings and workdir of a search and training, scored and timed."""
  config = config_lib.shrink(config_lib.base())
  config.search.schemes = ('1',)
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  api.derive_and_train(config, workdir=workdir)
  return config, workdir


@pytest.fixture
def rerun(finished, tmp_path):
  """The same, to be changed."""
  config, workdir = finished
  copy = shutil.copytree(workdir, tmp_path / 'run')
  return config.copy_and_resolve_references(), copy


def read(workdir, name='report.json'):
  return json.loads((workdir / name).read_text())


def test_what_is_scored_again_keeps_its_times(rerun):
  config, workdir = rerun
  before = read(workdir)
  assert before['latency_720p_ms'] and before['train_seconds']
  config.mode, config.checkpoint = 'evaluate', str(workdir)
  main.TASKS['evaluate'](config, workdir)
  assert read(workdir) == before
  assert read(workdir, 'config.json')['mode'] == 'pipeline'


def test_another_network_does_not_take_the_scores(rerun):
  config, workdir = rerun
  config.mode, config.checkpoint = 'evaluate', 'fast'
  files = [workdir / name for name in ('report.json', 'scores.json')]
  before = [path.read_bytes() for path in files]
  with pytest.raises(config_lib.SettingError, match="was '', is 'fast'"):
    main.TASKS['evaluate'](config, workdir)
  config.checkpoint = ''
  with pytest.raises(config_lib.SettingError, match='another architecture'):
    api.evaluate(api.load('fast'), config, workdir=workdir)
  assert [path.read_bytes() for path in files] == before


def test_the_card_of_a_run_has_its_task_and_scores(rerun, tmp_path):
  config, workdir = rerun
  report, network = read(workdir), api.load(workdir)
  card = network.card
  assert card.task == 'deblurring'
  assert card.metrics['psnr'] == report['psnr']
  assert card.timings == (report['latency_720p_ms'],)
  release = network.save_pretrained(tmp_path / 'release')
  assert restorer.load(release).card == card
  checkpoint = max((workdir / 'checkpoints').iterdir())
  assert restorer.load(checkpoint).card.metrics == {}
  (workdir / 'report.json').write_text('{')
  assert restorer.load(workdir).card.task == 'deblurring'
  with pytest.raises(config_lib.SettingError, match='holds a release'):
    api.open_workdir(release, config)


def test_another_task_than_the_networks_is_reported(tmp_path, capsys):
  network = api.load('fast')
  config = api.make_config(
    config_lib.shrink(config_lib.base()), task='jpeg',
    data={'jpeg_quality': (10, 40)},
  )  # fmt: skip
  words = 'trained for deblurring, and is scored at JPEG artifacts, quality 10'
  for task, is_told in (
    (network.card.task, True), ('of my own', False),
    (config_lib.describe_task(config), False),
  ):  # fmt: skip
    network.card = Card(task=task)
    api.evaluate(network, config, workdir=tmp_path)
    told = ' '.join(capsys.readouterr().err.split())
    assert (words in told) == ("set task to 'deblur'" in told) == is_told


def test_a_trained_network_keeps_its_search(rerun):
  config, workdir = rerun
  config.search.num_trials = 2
  with pytest.raises(config_lib.SettingError, match='num_trials was 1, is 2'):
    api.search(config, workdir=workdir)


def test_a_release_does_not_take_the_settings_of_a_run(rerun):
  config, workdir = rerun
  with pytest.raises(restorer.LoadError, match='config.json is there'):
    api.load(workdir).save_pretrained(workdir)
  api.open_workdir(workdir, config)


def test_a_stage_is_no_network(finished):
  _, workdir = finished
  with pytest.raises(restorer.LoadError, match='supernet of a search'):
    api.load(workdir / 'search' / 'trial0' / 'scale1')


def test_a_lost_score_is_made_again_from_the_same_weights(rerun):
  config, workdir = rerun
  assert config.train.inherit
  before = read(workdir)
  shutil.rmtree(workdir / 'search' / 'trial0' / hierarchical.SCORE)
  shutil.rmtree(workdir / 'checkpoints')
  api.derive_and_train(config, workdir=workdir)
  assert read(workdir)['psnr_float'] == before['psnr_float']


def test_a_network_is_scored_in_the_arithmetic_of_its_training(tmp_path):
  config = config_lib.shrink(config_lib.base())
  config.mode, config.genotype = 'train', 'dmphn-1-2'
  config.train.dtype, config.train.num_steps = 'bfloat16', 1
  main.TASKS['train'](config, tmp_path / 'run')
  before = read(tmp_path / 'run')
  assert before['dtype'] == 'bfloat16'
  config.mode, config.genotype = 'evaluate', ''
  main.TASKS['evaluate'](config, tmp_path / 'run')
  assert read(tmp_path / 'run') == before


@pytest.mark.parametrize(
  ('mode', 'settings', 'words'),
  [
    ('pipeline', {'genotype': 'dmphn'}, "genotype is 'dmphn'; expected ''"),
    ('search', {'checkpoint': 'fast'}, "checkpoint is 'fast'; expected ''"),
    ('search', {'train.start_from': 'fast'}, "start_from is 'fast'"),
    ('train', {'genotype': 'dmphn', 'checkpoint': 'fast'}, 'checkpoint is'),
    ('benchmark', {'genotype': 'dmphn', 'checkpoint': 'fast'},
     'checkpoint is'),
    ('search', {'search.max_latency_ms': 1e-4}, 'fastest of'),
  ],
)  # fmt: skip
def test_settings_that_a_task_has_no_use_for(mode, settings, words, tmp_path):
  config = config_lib.shrink(config_lib.base())
  config_lib.override(config, {'mode': mode} | settings)
  with pytest.raises(config_lib.SettingError, match=words):
    main.TASKS[mode](config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_search_goes_on_with_more_trials(tmp_path):
  config = config_lib.shrink(config_lib.base())
  config.search.schemes = ('1', '1-2')
  config.search.num_steps = config.search.score_steps = 3
  config.train.inherit = False
  first = api.search(config, workdir=tmp_path)
  config.search.num_trials, config.search.objective = 2, 'fastest'
  config.search.local_trials = 1
  config.search.psnr_slack = 100.0
  both = api.search(config, workdir=tmp_path)
  assert both.trials[0] == first.trials[0]
  assert {trial['scheme'] for trial in both.trials[:2]} == {'1', '1-2'}
  assert len(both.trials) == 3
  fastest = min(both.trials, key=lambda trial: trial['latency_ms'])
  assert both.genotype.to_dict() == fastest['genotype']
  config.search.max_params = 10**6
  with pytest.raises(config_lib.SettingError, match='max_params was 0'):
    api.search(config, workdir=tmp_path)


def make_photos(root, num_photos=12, seed=0):
  rng = np.random.default_rng(seed)
  root.mkdir(parents=True)
  for i in range(num_photos):
    pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / f'{i}.png')


def test_images_that_come_later_are_refused(tmp_path):
  root, workdir = tmp_path / 'photos', tmp_path / 'run'
  make_photos(root)
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(root)
  api.open_workdir(workdir, config)
  os.utime(root / '0.png', (0, 0))
  config.data.num_threads = 0
  api.open_workdir(workdir, config)
  shutil.copy(root / '0.png', root / 'a.png')
  for splits in (('train', 'validation', 'test'), ('test',)):
    with pytest.raises(config_lib.SettingError, match='began with'):
      api.open_workdir(workdir, config, splits=splits)
  (root / 'a.png').unlink()
  api.open_workdir(workdir, config)
  config.data.root = str(root.rename(tmp_path / 'moved'))
  api.open_workdir(workdir, config)
  # A folder that trains nothing draws nothing.
  alone = tmp_path / 'scores'
  api.open_workdir(alone, config, splits=('test',))
  shutil.copy(tmp_path / 'moved' / '0.png', tmp_path / 'moved' / 'a.png')
  api.open_workdir(alone, config, splits=('test',))
  config.data.root = str(root)
  with pytest.raises(config_lib.SettingError, match='data.root was'):
    api.open_workdir(alone, config, splits=('test',))


def test_images_that_keep_a_run_from_its_beginning_can_be_removed(tmp_path):
  root, workdir = tmp_path / 'photos', tmp_path / 'run'
  make_photos(root)
  Image.new('RGB', (10, 10)).save(root / 'small.png')
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(root)
  with pytest.raises(config_lib.SettingError, match='remove them'):
    api.open_workdir(workdir, config)
  (root / 'small.png').unlink()
  api.open_workdir(workdir, config)


def test_scores_of_one_network_give_way_to_those_of_the_next(tmp_path):
  config = config_lib.shrink(config_lib.base())
  config.mode = 'evaluate'
  for name in ('fast', 'quality'):
    config.checkpoint = name
    main.TASKS['evaluate'](config, tmp_path)
    assert read(tmp_path)['params'] == (
      api.describe_size(api.load(name).genotype)['params']
    )
    settings = json.loads((tmp_path / 'config.json').read_text())
    assert settings['checkpoint'] == name


def test_a_workdir_among_the_images_is_refused(tmp_path):
  make_photos(tmp_path / 'photos')
  make_folder(tmp_path / 'pairs')
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(tmp_path / 'photos')
  inside = tmp_path / 'photos' / 'runs' / 'a'
  with pytest.raises(config_lib.SettingError, match='pictures are data'):
    api.open_workdir(inside, config)
  assert not inside.exists()
  hidden = tmp_path / 'photos' / '.runs' / 'a'
  api.open_workdir(hidden, config)
  config.data.root = str(tmp_path / 'pairs')
  api.open_workdir(tmp_path / 'pairs' / 'runs' / 'a', config)


def test_a_workdir_beside_folders_of_pairs_is_not_among_them(tmp_path):
  for name in ('blur', 'sharp'):
    make_photos(tmp_path / name)
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(tmp_path)
  api.open_workdir(tmp_path / 'runs' / 'a', config)
  with pytest.raises(config_lib.SettingError, match='pictures are data'):
    api.open_workdir(tmp_path / 'blur' / 'runs', config)


def test_a_run_knows_its_images_by_names_and_sizes(tmp_path):
  first, second = tmp_path / 'a', tmp_path / 'b'
  for seed, part in enumerate(('train', 'test')):
    make_photos(first / part, seed=seed)
  shutil.copytree(first, second)
  config = config_lib.shrink(config_lib.base())
  for root in (first, second):  # It has been moved.
    config.data.name, config.data.root = 'folder', str(root)
    api.open_workdir(tmp_path / 'run', config)
  shutil.copy(second / 'test' / '0.png', second / 'test' / 'a.png')
  config.data.eval_patch = 32
  api.open_workdir(tmp_path / 'run', config)  # It learns nothing of these.
  Image.new('RGB', (44, 40)).save(second / 'train' / '0.png')
  with pytest.raises(config_lib.SettingError, match='began with'):
    api.open_workdir(tmp_path / 'run', config)


def test_an_architecture_may_be_named_otherwise(tmp_path):
  config = config_lib.shrink(config_lib.base())
  config.genotype, config.checkpoint = 'dmphn-1-2', 'fast'  # As once allowed.
  api.open_workdir(tmp_path, config)
  config.genotype = config.checkpoint = ''
  api.open_workdir(tmp_path, config)


def test_a_run_of_before_a_setting_goes_on_with_its_default(tmp_path):
  config = config_lib.shrink(config_lib.base())
  api.open_workdir(tmp_path, config)
  path = tmp_path / 'config.json'
  old = json.loads(path.read_text())
  del old['train']['start_from']
  path.write_text(json.dumps(old))
  api.open_workdir(tmp_path, config)
  path.write_text(json.dumps(old))
  config.train.start_from = 'fast'
  with pytest.raises(config_lib.SettingError, match="was '', is 'fast'"):
    api.open_workdir(tmp_path, config)


def test_another_architecture_does_not_take_the_weights(tmp_path):
  config = config_lib.shrink(config_lib.base())
  config.mode, workdir = 'train', tmp_path / 'run'
  first, other = (
    genotype_lib.PyramidGenotype(
      scales=(genotype_lib.ScaleGenotype(1, ('zero',), ('zero',)),),
      widths=(4,), cells_per_stage=1, global_residual=residual,
    )
    for residual in (True, False)
  )  # fmt: skip
  api.train(first, config, workdir=workdir)
  before = (workdir / 'genotype.json').read_text()
  with pytest.raises(config_lib.SettingError, match='another architecture'):
    api.train(other, config, workdir=workdir)
  assert (workdir / 'genotype.json').read_text() == before


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    ({'data': {'crop': 9999}}, 'data.crop is 9999'),
    ({'data': {'crop': 8}, 'train': {'loss': 'mse_ssim'}},
     'data.crop is 8; expected 11 or more, the window of train.loss'),
    ({'search': {'warmup_steps': 150}},
     'search.warmup_steps is 150; expected at most search.num_steps, 4'),
    ({'task': 'super_resolution', 'space': 'hinas',
      'search': {'refine_passes': 0}},
     "enlarges by 1, but task is 'super_resolution' and data.scale 2"),
  ],
)  # fmt: skip
def test_what_is_refused_does_not_take_the_workdir(tmp_path, settings, words):
  config = config_lib.shrink(config_lib.base())
  config.data.scale = 2
  genotype = genotype_lib.reference('dmphn-1-2')
  with pytest.raises(config_lib.SettingError, match=words):
    api.train(genotype, config, workdir=tmp_path / 'run', **settings)
  assert not (tmp_path / 'run').exists()


def test_a_workdir_keeps_its_model_and_what_costs_are_measured_on(tmp_path):
  config = config_lib.shrink(config_lib.base())
  api.open_workdir(tmp_path / 'free', config)
  config.benchmark.height = 96
  api.open_workdir(tmp_path / 'free', config)
  config.model.widths = (8, 16)
  with pytest.raises(config_lib.SettingError, match=r'model.widths was \['):
    api.open_workdir(tmp_path / 'free', config)
  api.open_workdir(tmp_path / 'searched', config)
  (tmp_path / 'searched' / hierarchical.TRIALS).touch()
  config.benchmark.runs = 7
  api.open_workdir(tmp_path / 'searched', config)
  config.benchmark.height = 48
  with pytest.raises(config_lib.SettingError, match='benchmark.height was 96'):
    api.open_workdir(tmp_path / 'searched', config)


@pytest.mark.skipif(
  jax.local_device_count() < 2, reason='one device shares any batch'
)
def test_batches_are_checked_where_they_are_used(tmp_path):
  config = config_lib.shrink(config_lib.base())
  config.search.batch_size, config.train.batch_size = 3, 4
  genotype = genotype_lib.reference('dmphn-1-2')
  with pytest.raises(config_lib.SettingError, match='search.batch_size'):
    api.search(config, workdir=tmp_path / 'a')
  config.data.crop = 9999  # It comes to this check.
  with pytest.raises(config_lib.SettingError, match='data.crop'):
    api.train(genotype, config, workdir=tmp_path / 'a')
  config.train.batch_size = 3
  with pytest.raises(config_lib.SettingError, match='train.batch_size'):
    api.train(genotype, config, workdir=tmp_path / 'a')
  assert not (tmp_path / 'a').exists()
  api.make_config(config)


def test_a_search_checks_what_its_alphas_learn_on(tmp_path):
  make_folder(tmp_path / 'pairs')
  for side in ('blur', 'sharp'):
    path = tmp_path / 'pairs' / 'validation' / side / 'small.png'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (12, 64)).save(path)
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(tmp_path / 'pairs')
  assert config.data.crop > 12
  with pytest.raises(config_lib.SettingError, match='data.eval_crop is 48'):
    api.open_workdir(tmp_path / 'training', config)
  config.data.eval_crop = 12
  api.open_workdir(tmp_path / 'training', config)
  with pytest.raises(config_lib.SettingError, match='small'):
    api.search(config, workdir=tmp_path / 'search')
  assert not (tmp_path / 'search' / 'config.json').exists()


def test_test_images_smaller_than_the_window_are_refused(tmp_path):
  make_folder(tmp_path / 'pairs')
  for side in ('blur', 'sharp'):
    path = tmp_path / 'pairs' / 'test' / side / 'small.png'
    Image.new('RGB', (64, 10)).save(path)
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(tmp_path / 'pairs')
  with pytest.raises(config_lib.SettingError, match=r'small \(10x64\)'):
    api.open_workdir(tmp_path / 'run', config)


def test_borders_that_are_not_scored_count_for_the_window(tmp_path):
  for split, height in (('train', 40), ('test', 14)):
    (tmp_path / 'sharp' / split).mkdir(parents=True)
    for i in range(4):
      image = Image.new('RGB', (64, height))
      image.save(tmp_path / 'sharp' / split / f'{i}.png')
  config = config_lib.shrink(config_lib.base())
  config.data.name, config.data.root = 'folder', str(tmp_path / 'sharp')
  api.open_workdir(tmp_path / 'deblur', config)
  config.task, config.space, config.data.scale = 'super_resolution', 'hinas', 2
  with pytest.raises(config_lib.SettingError, match='SSIM needs, 15x15'):
    api.open_workdir(tmp_path / 'enlarge', config)


@pytest.mark.parametrize('content', ['[1, 2]', '{'])
def test_a_workdir_with_a_foreign_config_is_refused(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  config = config_lib.shrink(config_lib.base())
  with pytest.raises(config_lib.SettingError, match='is not a JSON object'):
    api.open_workdir(tmp_path, config)
  with pytest.raises(config_lib.SettingError, match='workdir is .*a folder'):
    api.open_workdir(tmp_path / 'config.json', config)


def test_training_starts_from_a_trained_network(tmp_path):
  config = api.make_config(
    config_lib.shrink(config_lib.base()), mode='train',
    model={'unshuffle': 2}, search={'batch_size': 4},
    train={'start_from': 'fast', 'lr': 1e-9, 'batch_size': 4},
  )  # fmt: skip
  main.TASKS['train'](config, tmp_path / 'further')
  fast, further = api.load('fast'), api.load(tmp_path / 'further')
  assert further.genotype == fast.genotype
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7),
    further.params, fast.params,
  )  # fmt: skip
  report = json.loads((tmp_path / 'further' / 'report.json').read_text())
  assert report['psnr'] != report['psnr_input']
  refused = pytest.raises(config_lib.SettingError, match="start_from is 'fast'")
  other = genotype_lib.reference('dmphn-1-2-4')
  with refused:
    api.train(other, config, workdir=tmp_path / 'other')
  with refused:
    api.derive_and_train(config, workdir=tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def test_missing_data_is_named_before_any_work(tmp_path):
  with pytest.raises(config_lib.SettingError, match='nowhere'):
    api.derive_and_train(
      workdir=tmp_path / 'run', data={'name': 'folder', 'root': 'nowhere'}
    )
  assert not (tmp_path / 'run' / 'search').exists()


def test_help_lists_the_settings(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['main', '--help'])
  command.run(lambda config: pytest.fail('ran'))
  said = capsys.readouterr().out
  assert '--config=configs/search.py' in said
  assert 'search.max_gmacs' in said.split()


def test_misspelt_keyword_names_the_nearest_setting(tmp_path):
  with pytest.raises(config_lib.SettingError, match="'train.num_steps'"):
    api.derive_and_train(workdir=tmp_path, train={'num_stepz': 3})
