"""Pairs made from videos: their blur, their split, and runs that break off."""

from __future__ import annotations

import importlib.resources
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
from PIL import Image
import pytest

from pynas_jax import config as config_lib
from pynas_jax import metrics
from pynas_jax.data import make_pairs
from pynas_jax.data import pair_folder
from pynas_jax.data import shutter
from pynas_jax.data import sources

cv2 = pytest.importorskip('cv2')

HEIGHT, WIDTH = 64, 96
COMMAND = (sys.executable, '-m', 'pynas_jax.data.make_pairs')


def photo(name='city'):
  path = importlib.resources.files('pynas_jax.data') / 'photos' / f'{name}.png'
  with path.open('rb') as file, Image.open(file) as image:
    return np.array(image.convert('RGB').reduce(2))


def pan(count, step=2, name='city', top=40):
  """Frames of a camera that turns by `step` pixels from one to the next."""
  image = photo(name)
  lefts = 10 + step * np.arange(count)
  return [image[top : top + HEIGHT, x : x + WIDTH] for x in lefts]


def patches(count, steps, still_until=0):
  """Frames of a wall that stands; 16 pixel patches move, one for each step."""
  texture = photo()[60:76, 60:76]
  frames = []
  for i in range(count):
    frame = photo('pixel')[40 : 40 + HEIGHT, 40 : 40 + WIDTH].copy()
    for k, step in enumerate(steps):
      left = 4 + step * max(0, i - still_until)
      frame[8 + 32 * k : 24 + 32 * k, left : left + 16] = texture
    frames.append(frame)
  return frames


def write_video(path, frames, codec='ffv1', pix_fmt='bgr0', **options):
  """Writes a video, without loss by default."""
  with av.open(str(path), 'w', options=options) as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt, stream.gop_size = pix_fmt, 4
    for image in frames:
      image = np.ascontiguousarray(image)
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def run(out, *videos, **flags):
  """Runs the command in this process; returns its exit status."""
  flags = {'workers': 0, 'min_motion': 0.0} | flags
  argv = ['--out', out, '--video', *videos]
  for name, value in flags.items():
    argv += [f'--{name}', *(value if isinstance(value, list) else [value])]
  return make_pairs.main(list(map(str, argv)))


def records(out, file='pairs.jsonl'):
  return [json.loads(x) for x in (out / file).read_text().splitlines()]


def names(out):
  return [record['name'] for record in records(out)]


def read(out, name, side):
  scene, _, number = name.rpartition('/')
  with Image.open(out / scene / side / f'{number}.png') as image:
    return np.array(image)


def contents(out):
  """Returns path -> bytes of all files."""
  return {
    path.relative_to(out).as_posix(): path.read_bytes()
    for path in out.rglob('*')
    if path.is_file()
  }


def psnr(a, b):
  a, b = (np.asarray(x, np.float32)[None] / 255 for x in (a, b))
  return float(metrics.psnr(a, b)[0])


def shifted_average(image, shifts, gamma):
  """Returns the mean in linear light of an image moved along x."""
  light = (image / 255.0) ** gamma
  x = np.arange(image.shape[1])
  total = np.zeros_like(light)
  for shift in shifts:
    for row in range(light.shape[0]):
      for c in range(3):
        total[row, :, c] += np.interp(x + shift, x, light[row, :, c])
  return 255 * (total / len(shifts)) ** (1 / gamma)


INSIDE = np.s_[12:-12, 20:-20]


@pytest.mark.parametrize('exposure', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('step', [2, 5])
def test_interpolated_blur_of_a_pan_is_an_average_of_shifted_images(
  exposure, step
):
  frames = pan(3, step)
  blurred = shutter.interpolated_blur(
    *frames, exposure=exposure, subframes=8, gamma=2.2
  )
  assert blurred.dtype == np.uint8
  assert blurred.shape == (HEIGHT, WIDTH, 3)
  reach = exposure * step / 2
  # A wider piece of the scene, as what enters the frame is part of the truth.
  scene = photo()[40 : 40 + HEIGHT, :200]
  ideal = shifted_average(scene, np.linspace(-reach, reach, 41), 2.2)
  ideal = ideal[:, 10 + step : 10 + step + WIDTH]
  score = psnr(blurred[INSIDE], ideal[INSIDE])
  assert score > 30
  assert score > psnr(frames[1][INSIDE], ideal[INSIDE]) + 5


@pytest.mark.parametrize('steps', [(1, 6), (6, 1)])
def test_both_halves_of_the_exposure_follow_their_own_motion(steps):
  first, second = steps
  scene = photo()[40 : 40 + HEIGHT, :200]
  frames = [scene[:, x : x + WIDTH] for x in (30 - first, 30, 30 + second)]
  blurred = shutter.interpolated_blur(
    *frames, exposure=1.5, subframes=8, gamma=2.2
  )
  times = np.linspace(-0.75, 0.75, 41)
  shifts = np.where(times < 0, first * times, second * times)
  ideal = shifted_average(scene, shifts, 2.2)[:, 30 : 30 + WIDTH]
  score = psnr(blurred[INSIDE], ideal[INSIDE])
  assert score > 30
  other_way = shutter.interpolated_blur(
    *frames[::-1], exposure=1.5, subframes=8, gamma=2.2
  )
  np.testing.assert_allclose(other_way, blurred, atol=1)  # Time is symmetric.
  # The ideal of the motion turned round is another one.
  turned = shifted_average(scene, -shifts, 2.2)[:, 30 : 30 + WIDTH]
  assert score > psnr(blurred[INSIDE], turned[INSIDE]) + 5


def test_blur_grows_with_exposure_and_vanishes_without():
  frames = pan(3, 4)
  scores = [
    psnr(
      shutter.interpolated_blur(
        *frames, exposure=exposure, subframes=8, gamma=2.2
      ),
      frames[1],
    )
    for exposure in (0.01, 0.25, 0.5, 1.0, 1.5, 2.0)
  ]
  assert scores == sorted(scores, reverse=True)
  assert scores[0] > 45
  assert scores[-1] < scores[0] - 20


def test_more_subframes_fill_the_gaps_of_fast_motion():
  frames = pan(3, 8)
  scene = photo()[40 : 40 + HEIGHT, :200]
  ideal = shifted_average(scene, np.linspace(-8, 8, 81), 2.2)
  ideal = ideal[:, 18 : 18 + WIDTH]
  few, many = (
    psnr(
      shutter.interpolated_blur(
        *frames, exposure=2.0, subframes=subframes, gamma=2.2
      )[INSIDE],
      ideal[INSIDE],
    )
    for subframes in (1, 8)
  )
  assert many > few + 2


def test_blur_is_taken_in_linear_light():
  frames = pan(3, 4)
  linear, coded = (
    shutter.interpolated_blur(
      *frames, exposure=2.0, subframes=8, gamma=gamma
    )
    for gamma in (2.2, 1.0)
  )
  # Of different lights the mean light is brighter than the mean value.
  assert linear.mean() > coded.mean() + 0.5


def test_blur_is_a_pure_function_and_reuses_flows():
  frames = pan(3, 3)
  copies = [frame.copy() for frame in frames]
  settings = {'exposure': 1.0, 'subframes': 3, 'gamma': 2.2}
  first = shutter.interpolated_blur(*frames, **settings)
  flows = shutter.centre_flows(*frames)
  again = shutter.interpolated_blur(*frames, **settings, flows=flows)
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal(frames, copies)
  still = shutter.interpolated_blur(
    *frames, **settings, flows=np.zeros_like(flows)
  )
  assert np.any(still != first)


@pytest.mark.parametrize('step', [1, 3, 6])
def test_motion_of_a_pan_is_its_step(step):
  flows = shutter.centre_flows(*pan(3, step))
  assert flows.shape == (2, HEIGHT, WIDTH, 2)
  # The camera goes right, so things go left.
  np.testing.assert_allclose(
    np.median(flows[:, 12:-12, 20:-20], axis=(1, 2)),
    [[step, 0], [-step, 0]], atol=0.1,
  )  # fmt: skip
  motion = shutter.motion_map(flows)
  assert motion.shape == (HEIGHT, WIDTH)
  np.testing.assert_allclose(np.median(motion), step, atol=0.1)


@pytest.mark.parametrize('gamma', [1.0, 2.2])
def test_averaged_blur_is_the_mean_in_linear_light(gamma):
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (7, 9, 8, 3), dtype=np.uint8)
  light = ((frames / 255.0) ** gamma).mean(axis=0)
  expected = np.rint(255 * light ** (1 / gamma))
  result = shutter.averaged_blur(list(frames), gamma=gamma)
  assert result.dtype == np.uint8
  # float32 may round a half to the other side.
  difference = np.abs(result - expected)
  assert difference.max() <= 1
  assert np.count_nonzero(difference) <= 1


def test_moving_windows_are_the_best_and_do_not_overlap():
  rng = np.random.default_rng(1)
  motion = rng.random((40, 50)).astype(np.float32)
  size = 12
  means = np.lib.stride_tricks.sliding_window_view(motion, (size, size))
  means = means.mean(axis=(2, 3))
  windows = shutter.moving_windows(motion, size=size, count=4)
  assert len(windows) == 4
  taken = np.zeros_like(motion, int)
  for y, x in windows:
    free = np.lib.stride_tricks.sliding_window_view(taken, (size, size))
    free = free.sum(axis=(2, 3)) == 0
    np.testing.assert_allclose(means[y, x], means[free].max(), rtol=1e-5)
    taken[y : y + size, x : x + size] += 1
  assert taken.max() == 1
  assert len(shutter.moving_windows(motion, size=40, count=3)) == 1
  assert shutter.moving_windows(motion, size=41, count=1) == []


def test_pairs_are_written_as_they_are_computed(tmp_path, capsys):
  frames = pan(20)
  video = write_video(tmp_path / 'a.mkv', frames)
  out = tmp_path / 'out'
  assert run(out, video, every=6, exposure=1.5, subframes=4, gamma=2.0) == 0
  assert names(out) == [f'train/a/{i:06}' for i in (1, 7, 13)]
  for record in records(out):
    i = record['frame']
    blurred = read(out, record['name'], 'blur')
    np.testing.assert_array_equal(read(out, record['name'], 'sharp'), frames[i])
    np.testing.assert_array_equal(
      blurred,
      shutter.interpolated_blur(
        *frames[i - 1 : i + 2], exposure=1.5, subframes=4, gamma=2.0
      ),
    )
    motion = shutter.motion_map(
      shutter.centre_flows(*frames[i - 1 : i + 2])
    )
    assert record['motion_px'] == pytest.approx(motion.mean(), abs=1e-3)
    assert record['psnr_input_db'] == pytest.approx(
      psnr(blurred, frames[i]), abs=1e-3
    )
    assert record['box'] == [0, 0, HEIGHT, WIDTH]
    assert record['time_s'] == pytest.approx(i / 25, abs=2e-3)
    assert (record['video'], record['split']) == ('a.mkv', 'train')
  manifest = json.loads((out / 'manifest.json').read_text())
  assert manifest['settings']['exposure'] == 1.5
  assert manifest['videos'][0]['file'] == 'a.mkv'
  assert manifest['videos'][0]['shots'] == [[0, 20]]
  assert manifest['versions']['cv2'] == cv2.__version__
  shown = capsys.readouterr()
  # This container does not say how many frames it holds: 20 is an estimate.
  assert 'Looking for shots  20/20' in shown.err
  assert 'Making pairs  3/3' in shown.err
  mean = np.mean([record['psnr_input_db'] for record in records(out)])
  assert '3 made, 0 still' in shown.out
  assert f'{mean:.2f} dB' in shown.out
  assert 'No video is for testing' in shown.out + shown.err


def test_average_mode_averages_neighbouring_frames(tmp_path):
  frames = pan(16, step=1)
  video = write_video(tmp_path / 'fast.mkv', frames)
  out = tmp_path / 'out'
  assert run(out, video, average=5, every=4) == 0
  assert [record['frame'] for record in records(out)] == [2, 6, 10]
  for record in records(out):
    i = record['frame']
    expected = shutter.averaged_blur(frames[i - 2 : i + 3], gamma=2.2)
    np.testing.assert_array_equal(read(out, record['name'], 'blur'), expected)
    np.testing.assert_array_equal(read(out, record['name'], 'sharp'), frames[i])
    assert record['motion_px'] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
  ('flags', 'reach'), [({}, 1), ({'average': 3}, 1), ({'average': 7}, 3)]
)
def test_frames_of_two_shots_are_never_blended(tmp_path, flags, reach):
  shots = [pan(9), pan(11, name='night'), pan(8, name='sunset')]
  video = write_video(tmp_path / 'cut.mkv', sum(shots, []))
  out = tmp_path / 'out'
  assert run(out, video, every=1, **flags) == 0
  expected, start = [], 0
  for k, shot in enumerate(shots):
    stop = start + len(shot)
    expected += [
      f'train/cut-shot{k + 1}/{i:06}'
      for i in range(start + reach, stop - reach)
    ]
    start = stop
  assert names(out) == expected


def test_fast_motion_is_not_taken_for_a_cut(tmp_path):
  video = write_video(tmp_path / 'a.mkv', pan(6, step=12))
  out = tmp_path / 'out'
  assert run(out, video, every=1) == 0
  assert names(out) == [f'train/a/{i:06}' for i in range(1, 5)]


@pytest.fixture(scope='module')
def five_videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp('videos')
  return [
    write_video(folder / f'{name}.mkv', pan(4, top=10 * i))
    for i, name in enumerate('abcde')
  ]


def test_split_is_by_video(five_videos, tmp_path):
  named = five_videos[1], five_videos[3]
  out = tmp_path / 'named'
  assert run(out, *five_videos, every=1, test=list(named)) == 0
  by_split = {'train': set(), 'test': set()}
  for record in records(out):
    by_split[record['split']].add(record['video'])
    assert record['name'].startswith(record['split'] + '/')
  assert by_split['test'] == {path.name for path in named}
  assert by_split['train'] == {'a.mkv', 'c.mkv', 'e.mkv'}
  assert len(records(out)) == 10


def test_split_at_random_follows_from_fraction_and_seed(five_videos, tmp_path):
  def tested(name, *videos, **flags):
    out = tmp_path / name
    assert run(out, *videos, **flags) == 0
    return {r['video'] for r in records(out) if r['split'] == 'test'}

  assert len(tested('default', *five_videos)) == 1
  assert len(tested('many', *five_videos, test_fraction=0.4)) == 2
  assert len(tested('most', *five_videos[:2], test_fraction=0.9)) == 1
  assert not tested('none', *five_videos, test_fraction=0)
  assert not tested('one', five_videos[0], test_fraction=0.5)
  choices = {
    frozenset(tested(f'seed{seed}', *five_videos, seed=seed))
    for seed in range(5)
  }
  assert len(choices) > 1
  assert tested('again', *five_videos, seed=3) == tested(
    'seed3', *five_videos, seed=3
  )


def test_crops_hold_what_moves(tmp_path):
  frames = patches(8, steps=[3, 5])
  video = write_video(tmp_path / 'a.mkv', frames)
  out = tmp_path / 'out'
  assert run(out, video, every=3, crop=32, crops_per_frame=2) == 0
  assert names(out) == [f'train/a/{i:06}_{k}' for i in (1, 4) for k in (0, 1)]
  for i in (1, 4):
    first, second = [r for r in records(out) if r['frame'] == i]
    # The lower patch is faster: its crop comes first, the other one second.
    assert first['motion_px'] > second['motion_px'] > 0.5
    for record, row, step in ((first, 40, 5), (second, 8, 3)):
      y, x, h, w = record['box']
      assert (h, w) == (32, 32)
      left = 4 + step * i
      assert y <= row + 8 < y + h
      assert x <= left + 8 < x + w
      np.testing.assert_array_equal(
        read(out, record['name'], 'sharp'), frames[i][y : y + h, x : x + w]
      )
      assert read(out, record['name'], 'blur').shape == (32, 32, 3)
    (y, x, h, w), (v, u, _, _) = first['box'], second['box']
    assert abs(y - v) >= h or abs(x - u) >= w


def test_still_frames_and_crops_are_left_out_and_counted(tmp_path, capsys):
  still = write_video(tmp_path / 'still.mkv', pan(8, step=0))
  mixed = write_video(tmp_path / 'mixed.mkv', patches(8, [4]))
  out = tmp_path / 'out'
  flags = {
    'every': 1, 'crop': 32, 'crops_per_frame': 2, 'min_motion': 0.5,
    'test_fraction': 0,
  }  # fmt: skip
  assert run(out, still, mixed, **flags) == 0
  assert names(out) == [f'train/mixed/{i:06}_0' for i in range(1, 7)]
  left_out = records(out, 'left_out.jsonl')
  assert len(left_out) == 18
  assert all(record['motion_px'] < 0.5 for record in left_out)
  shown = capsys.readouterr().out
  assert '0 made, 12 still' in shown
  assert '6 made, 6 still' in shown
  # Nothing is looked at again.
  before = contents(out)
  assert run(out, still, mixed, **flags) == 0
  assert contents(out) == before


def test_no_pairs_at_all_is_an_error(tmp_path, capsys):
  video = write_video(tmp_path / 'still.mkv', pan(5, step=0))
  short = write_video(tmp_path / 'short.mkv', pan(2))
  assert run(tmp_path / 'out', video, short, min_motion=1.0) == 1
  shown = capsys.readouterr()
  assert '--min_motion 1.0' in shown.err
  assert 'no shot is long enough' in shown.out


@pytest.mark.parametrize('crops', [1, 2])
def test_max_pairs_counts_pairs_not_frames(tmp_path, crops):
  # Nothing moves in the first five frames.
  frames = patches(16, [3, 4], still_until=5)
  video = write_video(tmp_path / 'a.mkv', frames)
  every, out = tmp_path / 'every', tmp_path / 'out'
  flags = {
    'every': 1, 'crop': 32, 'crops_per_frame': crops, 'min_motion': 0.5,
  }  # fmt: skip
  assert run(every, video, **flags) == 0
  assert len(names(every)) >= 8 * crops
  flags['max_pairs'] = 3
  assert run(out, video, **flags) == 0
  assert records(out) == records(every)[:3]
  assert records(out)[0]['frame'] >= 5
  # A lost file is made again, and nothing else.
  before = contents(out)
  scene, _, number = names(out)[0].rpartition('/')
  (out / scene / 'blur' / f'{number}.png').unlink()
  assert run(out, video, **flags) == 0
  after = contents(out)
  assert sorted(after.pop('pairs.jsonl').splitlines()) == sorted(
    before.pop('pairs.jsonl').splitlines()
  )
  assert after == before


def test_number_of_workers_changes_nothing(five_videos, tmp_path):
  long = write_video(
    tmp_path / 'long.mkv', patches(24, [2, 3], still_until=8)
  )
  flags = {
    'every': 2, 'crop': 32, 'crops_per_frame': 2, 'max_pairs': 5,
    'min_motion': 0.4,
  }  # fmt: skip
  for workers in (0, 2):
    out = tmp_path / str(workers)
    assert run(out, *five_videos, long, workers=workers, **flags) == 0
  one, two = contents(tmp_path / '0'), contents(tmp_path / '2')
  assert one.keys() == two.keys()
  assert one == two
  assert sum(name.endswith('.png') for name in one) > 20


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  """A video and the pairs of it, made in one go."""
  folder = tmp_path_factory.mktemp('whole')
  frames = [np.tile(frame, (4, 4, 1)) for frame in pan(40)]
  video = write_video(folder / 'a.mkv', frames)
  assert run(folder / 'out', video, every=1) == 0
  return video, contents(folder / 'out')


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_result(whole_run, tmp_path, number):
  video, whole = whole_run
  out = tmp_path / 'out'
  # Commands in the background ignore it, and so would what they start.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
    [*COMMAND, '--video', video, '--out', out, '--every', '1', '--min_motion',
     '0', '--workers', '2'],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    start_new_session=True,
  )  # fmt: skip
  signal.signal(signal.SIGINT, before)
  pairs = out / 'pairs.jsonl'
  while not pairs.exists() or pairs.read_bytes().count(b'\n') < 2:
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  if number == signal.SIGINT:  # Ctrl-C reaches the workers too.
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)
  # Returns when the last process that can write there has ended: no worker
  # stays behind.
  _, error = process.communicate(timeout=60)
  if number == signal.SIGINT:
    assert process.returncode == 1
    assert error.endswith(
      'Error: stopped. The same command again goes on from here.\n'
    )
    assert 'Traceback' not in error
  else:
    assert process.returncode == -signal.SIGKILL
  made = names(out)
  assert 2 <= len(made) < 38

  def written(name):
    return (out / f'train/a/blur/{name[-6:]}.png').stat().st_mtime_ns

  times = [written(name) for name in made]
  # What else a kill can leave.
  with pairs.open('a') as file:
    file.write('{"name": "train/a/0000')
  (out / 'train/a/blur/000050.png.123.tmp').write_text('half')
  assert run(out, video, every=1) == 0
  assert [written(name) for name in made] == times
  found = contents(out)
  lines = found.pop('pairs.jsonl').splitlines()
  assert len(lines) == 38
  assert sorted(lines) == sorted(whole['pairs.jsonl'].splitlines())
  assert found == {k: v for k, v in whole.items() if k != 'pairs.jsonl'}


def test_other_settings_are_refused(five_videos, tmp_path, capsys):
  out = tmp_path / 'out'
  assert run(out, *five_videos[:2], exposure=1.0, every=2) == 0
  before = contents(out)
  capsys.readouterr()
  for videos, flags, message in (
    (five_videos[:2], {'exposure': 2.0, 'every': 2},
     'exposure is 2.0, but the pairs in {out} were made with 1.0'),
    (five_videos[:2], {'every': 3}, 'every is 3, but'),
    (five_videos[:2], {'average': 3, 'every': 2}, 'average is 3, but'),
    (five_videos[:2], {'every': 2, 'test': [five_videos[0]]},
     "test is ['a.mkv'], but"),
    (five_videos[:3], {'every': 2}, 'c.mkv'),
  ):  # fmt: skip
    assert run(out, *videos, **flags) == 2
    error = capsys.readouterr().err
    assert error.startswith('Error: ')
    assert message.format(out=out) in error
    assert error.count('\n') == 1
  assert contents(out) == before
  assert run(out, *five_videos[:2], every=2, workers=1) == 0


def test_names_with_special_characters(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  odd = ['-a.mkv', 'b c;$(touch owned).mkv', "d'é%d&.mkv", 'x:0.mkv']
  for name in odd:
    write_video(tmp_path / 'plain.mkv', pan(4)).rename(name)
  shutil.copy('-a.mkv', '-b.mkv')
  argv = ['--out', '-out dir', '--workers', '0', '--min_motion', '0']
  # A folder that is there is no flag either.
  os.mkdir('-out dir')
  assert make_pairs.main(
    [*argv, '--test', '-a.mkv', '--video', *odd, '-b.mkv']
  ) == 0  # fmt: skip
  out = pathlib.Path('-out dir')
  assert {name.rpartition('/')[0] for name in names(out)} == {
    'test/a', 'train/b_c_touch_owned_', 'train/d_é_d_', 'train/x_0', 'train/b',
  }  # fmt: skip
  assert sorted(os.listdir()) == sorted([*odd, '-b.mkv', '-out dir'])


def test_equal_stems_make_different_scenes(tmp_path):
  paths = []
  for folder, top in (('one', 0), ('two', 30)):
    (tmp_path / folder).mkdir()
    paths.append(write_video(tmp_path / folder / 'a.mkv', pan(4, top=top)))
  out = tmp_path / 'out'
  assert run(out, *paths, test=[paths[1]]) == 0
  assert names(out) == ['train/a/000001', 'test/a-2/000001']
  np.testing.assert_array_equal(
    read(out, 'test/a-2/000001', 'sharp'), pan(4, top=30)[1]
  )


def test_folder_source_reads_the_pairs(five_videos, tmp_path):
  out = tmp_path / 'out'
  assert run(out, *five_videos, every=1, test=[five_videos[0]]) == 0
  config = config_lib.base()
  config.data.name, config.data.root = 'folder', str(out)
  test = sources.make_source(config.data, 'test', seed=0)
  assert list(test.names) == ['test/a/000001', 'test/a/000002']
  np.testing.assert_array_equal(test[0]['sharp'], pan(4, top=0)[1])
  rest = [
    len(sources.make_source(config.data, split, seed=0))
    for split in ('train', 'validation')
  ]
  assert sum(rest) == 8


def test_pairs_of_one_video_are_enough_for_all_splits(tmp_path):
  out = tmp_path / 'out'
  video = write_video(tmp_path / 'a.mkv', pan(12))
  assert run(out, video, every=1) == 0
  config = config_lib.base()
  config.data.name, config.data.root = 'folder', str(out)
  parts = [
    set(sources.make_source(config.data, split, seed=0).names)
    for split in sources.SPLITS
  ]
  assert [len(part) for part in parts] == [8, 1, 1]
  assert set.union(*parts) == {f'train/a/{i:06}' for i in range(1, 11)}


def test_contact_sheet_is_small_and_shows_every_scene(five_videos, tmp_path):
  out = tmp_path / 'out'
  assert run(out, *five_videos, every=1) == 0
  path = out / 'contact_sheet.jpg'
  assert path.stat().st_size <= 1_500_000
  with Image.open(path) as image:
    assert image.format == 'JPEG'
    # Two pairs of five scenes, four a row.
    assert image.size == (4 * 480, 3 * (2 * HEIGHT + 34))
    sheet = np.asarray(image)
  sharp = read(out, 'test/' + sorted((out / 'test').iterdir())[0].name
               + '/000001', 'sharp')  # fmt: skip
  corner = sheet[28 + HEIGHT : 28 + 2 * HEIGHT, 192:288]
  assert psnr(corner, sharp) > 25
  smaller = tmp_path / 'smaller.jpg'
  pair_folder.contact_sheet(out, records(out), smaller, max_bytes=60_000)
  assert 0 < smaller.stat().st_size <= 60_000 < path.stat().st_size


def cut_short(data):
  return data[: len(data) * 8 // 10]


def overwritten(data):
  """A reader passes over the hole without a word."""
  half, hole = len(data) // 2, len(data) // 5
  return data[:half] + b'U' * hole + data[half + hole :]


@pytest.mark.parametrize(
  ('file', 'damage'), [('a.mp4', cut_short), ('b.avi', overwritten)]
)
def test_a_video_that_breaks_off_is_used_so_far(
  five_videos, tmp_path, capsys, file, damage
):
  options = {'movflags': 'faststart'} if file.endswith('mp4') else {}
  path = write_video(tmp_path / file, pan(40), 'mpeg4', 'yuv420p', **options)
  path.write_bytes(damage(path.read_bytes()))
  out = tmp_path / 'out'
  flags = {'every': 2, 'test': [five_videos[0]]}
  for _ in range(2):  # Also when there is nothing left to do.
    assert run(out, path, five_videos[0], **flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'Error: {file} breaks off after')
    manifest = json.loads((out / 'manifest.json').read_text())
    count = manifest['videos'][0]['frames']
    assert 4 < count < 40
    used = [r['frame'] for r in records(out) if r['split'] == 'train']
    assert used[0] == 1
    assert max(used) < count - 1
  assert any(r['split'] == 'test' for r in records(out))


def damaged(path):
  path.write_bytes(b'no video' * 50)
  return path


def sound(path):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
    samples = np.zeros((1, 800), np.int16)
    frame = av.AudioFrame.from_ndarray(samples, format='s16', layout='mono')
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'exposure': 0}, 'exposure is 0.0; expected above 0, at most 2 frame'),
    ({'exposure': 2.1}, 'exposure is 2.1'),
    ({'exposure': 'nan'}, 'exposure is nan'),
    ({'exposure': 'long'}, '--exposure: invalid float value'),
    ({'subframes': 0}, 'subframes is 0; expected 1 or more'),
    ({'gamma': 0}, 'gamma is 0.0'),
    ({'gamma': 'inf', 'average': 7}, 'gamma is inf'),
    ({'average': 8}, 'average is 8; expected an odd number of frames, 3 to 31'),
    ({'average': 1}, 'average is 1'),
    ({'average': 33}, 'average is 33'),
    ({'average': 7, 'exposure': 1.0}, 'exposure is 1.0 and average is 7'),
    ({'average': 7, 'subframes': 8}, 'subframes is 8 and average is 7'),
    ({'every': 0}, 'every is 0'),
    ({'max_pairs': -1}, 'max_pairs is -1'),
    ({'crop': -1}, 'crop is -1'),
    ({'crop': 65}, 'a.mkv is 96x64; expected at least 65 pixels a side'),
    ({'crops_per_frame': 0, 'crop': 32}, 'crops_per_frame is 0'),
    ({'crops_per_frame': 2}, 'crops_per_frame is 2; expected 1 for whole'),
    ({'min_motion': -1}, 'min_motion is -1.0'),
    ({'min_motion': 'nan'}, 'min_motion is nan'),
    ({'test_fraction': 1}, 'test_fraction is 1.0; expected 0 or more, below'),
    ({'seed': -1}, 'seed is -1'),
    ({'workers': -1}, 'workers is -1'),
    ({'test': ['other.mkv']}, 'test is other.mkv, which is not one of'),
    ({'evry': 2}, 'unrecognized arguments: --evry'),
  ],
)
def test_bad_settings_are_refused_before_any_work(
  five_videos, tmp_path, capsys, flags, message
):
  out = tmp_path / 'out'
  assert run(out, five_videos[0], **flags) == 2
  error = capsys.readouterr().err
  assert error.startswith('Error: ')
  assert message in error
  assert error.count('\n') == 1
  assert not out.exists()


def test_bad_videos_are_refused_before_any_work(
  five_videos, tmp_path, capsys
):
  good = five_videos[0]
  tiny = write_video(tmp_path / 'tiny.mkv', [x[:24, :24] for x in pan(3)])
  link = tmp_path / 'link.mkv'
  link.symlink_to(good)
  for bad, message in (
    (tmp_path / 'none.mp4', 'none.mp4 is not a file'),
    (tmp_path, 'is not a file'),
    (damaged(tmp_path / 'text.mp4'), 'text.mp4 cannot be decoded: Invalid'),
    (sound(tmp_path / 'sound.wav'), 'sound.wav cannot be decoded: it has no v'),
    (tiny, 'tiny.mkv is 24x24; expected at least 32 pixels'),
    (link, 'link.mkv is given twice'),
  ):
    assert run(tmp_path / 'out', good, bad) == 2
    error = capsys.readouterr().err
    assert error.startswith('Error: video ')
    assert message in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_out_that_is_something_else_is_left_alone(
  five_videos, tmp_path, capsys
):
  file, folder = tmp_path / 'file', tmp_path / 'folder'
  file.write_text('mine')
  folder.mkdir()
  (folder / 'mine.txt').write_text('mine')
  broken = tmp_path / 'broken'
  broken.mkdir()
  (broken / 'manifest.json').write_text('{}')
  before = contents(tmp_path)
  for out in (file, folder, broken):
    assert run(out, five_videos[0]) == 2
    error = capsys.readouterr().err
    assert error.startswith('Error: ')
    assert str(out) in error
    assert error.count('\n') == 1
  assert contents(tmp_path) == before


def test_a_damaged_record_is_named(five_videos, tmp_path, capsys):
  out = tmp_path / 'out'
  assert run(out, five_videos[0], every=1) == 0
  path = out / 'pairs.jsonl'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(['[1]', *lines]) + '\n')
  capsys.readouterr()
  assert run(out, five_videos[0], every=1) == 2
  assert 'pairs.jsonl, line 1 is not a record' in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_get_it(tmp_path):
  code = """if True:
    import sys
    sys.modules['cv2'] = None
    from pynas_jax.data import make_pairs
    assert 'jax' not in sys.modules
    sys.exit(make_pairs.main(['--video', 'a.mp4', '--out', 'out']))
  """
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, text=True, capture_output=True
  )
  assert done.returncode == 2
  assert done.stderr == (
    "Error: OpenCV is missing; pip install 'pynas-jax[video]'.\n"
  )


def test_real_driving_makes_plausible_blur(shared, tmp_path):
  video = shared / 'data' / 'video' / 'solidWhiteRight.mp4'
  out = tmp_path / 'out'
  assert run(out, video, max_pairs=2, crop=192, min_motion=1.0) == 0
  found = records(out)
  assert len(found) == 2
  mean = np.mean([record['psnr_input_db'] for record in found])
  assert 15 < mean < 35
  for record in found:
    blurred, sharp = (
      read(out, record['name'], x).astype(float) for x in ('blur', 'sharp')
    )
    # Blur takes detail away.
    detail = [np.abs(np.diff(x, axis=1)).mean() for x in (blurred, sharp)]
    assert detail[0] < detail[1]


def test_video_of_a_turned_phone_is_upright(shared, tmp_path):
  video = shared / 'data' / 'video' / 'mv_with_2_top_shots.mp4'
  out = tmp_path / 'out'
  assert run(out, video, max_pairs=1, subframes=1) == 0
  assert records(out)[0]['box'] == [0, 0, 1440, 1080]
