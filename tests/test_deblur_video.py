"""`pynas-deblur` on videos: frames, times, sound and colours are kept."""

from __future__ import annotations

import contextlib
import dataclasses
from fractions import Fraction
import itertools
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest

from pynas_jax import deblur
from pynas_jax import restore
from pynas_jax.deploy import videos

COMMAND = (sys.executable, '-m', 'pynas_jax.deblur')
MILLISECOND = Fraction(1, 1000)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video to generate."""

  name: str = 'clip.mp4'
  codec: str = 'libx264'
  pix_fmt: str = 'yuv420p'
  size: tuple[int, int] = (48, 64)  # Height, width.
  times: tuple[int, ...] = (0, 40, 80, 120, 160, 200)  # Milliseconds.
  audio: tuple[str, ...] = ()  # Codecs.
  rotation: int = 0
  matrix: int = 2  # FFmpeg's numbers; 2 is unspecified.
  range: int = 0
  stored: str = ''  # The format expected back, if another.
  suffix: str = '.mp4'
  options: tuple[tuple[str, str], ...] = ()


CLIPS = {
  'plain': Clip(audio=('aac',)),
  'variable_rate': Clip(times=(0, 33, 70, 71, 300, 1000), audio=('aac',)),
  'starts_late': Clip(times=(500, 540, 580, 620)),
  'rotated': Clip(rotation=90),
  'odd_size': Clip('a.mkv', 'ffv1', size=(33, 21), stored='yuv444p',
                   suffix='.mkv'),
  'full_range': Clip(matrix=1, range=2, stored='yuvj420p'),
  'ten_bits': Clip(pix_fmt='yuv420p10le', matrix=9, range=1),
  'bt709_422': Clip('a.mov', pix_fmt='yuv422p', matrix=1, range=1,
                    audio=('pcm_s16le',), suffix='.mov'),
  'gray': Clip('a.mkv', 'ffv1', 'gray', stored='yuvj420p', suffix='.mkv'),
  'rgb': Clip('a.mkv', 'ffv1', 'bgr0', stored='yuv444p', suffix='.mkv'),
  'webm_two_sounds': Clip('a.webm', 'libvpx-vp9', audio=('libopus', 'libopus'),
                          suffix='.mkv'),
  'avi': Clip('a.avi', 'mjpeg', 'yuvj420p', range=2, stored='yuvj420p'),
  'avi_gap': Clip('a.avi', 'mjpeg', 'yuvj420p', range=2, stored='yuvj420p',
                  times=(0, 40, 80, 200, 240)),
  'avi_pcm': Clip('a.avi', 'mjpeg', 'yuvj420p', range=2, stored='yuvj420p',
                  audio=('pcm_s16le',), suffix='.mov'),
  'one_frame': Clip(times=(0,)),
  'b_frames': Clip(times=tuple(range(0, 1200, 40)),
                   options=(('preset', 'slow'),)),
  'spaces; $(touch pwned) & more': Clip('-a b; $(touch pwned).mp4',
                                        audio=('aac',)),
}  # fmt: skip


def pictures(clip):
  """Smooth frames, each of its own colour, so that all codecs keep them."""
  height, width = clip.size
  y, x = np.mgrid[:height, :width]
  for i in range(len(clip.times)):
    red = 60 + 100 * x / width
    green = 180 - 90 * y / height
    blue = np.full_like(red, 40 + 150 * i / len(clip.times))
    yield np.stack([red, green, blue], axis=-1).astype(np.uint8)


def write_clip(path, clip):
  with av.open(f'file:{path}', 'w') as container:
    video = container.add_stream(
      clip.codec, rate=25, options={'crf': '10'} | dict(clip.options)
    )
    video.height, video.width = clip.size
    video.pix_fmt = clip.pix_fmt
    context = video.codec_context
    context.time_base = Fraction(1, 25) if 'avi' in clip.name else MILLISECOND
    context.colorspace, context.color_range = clip.matrix, clip.range
    if clip.rotation:
      video.set_display_rotation(clip.rotation)
    sounds = [container.add_stream(name, rate=48000) for name in clip.audio]
    for sound in sounds:
      sound.layout = 'mono'
    for time, image in zip(clip.times, pictures(clip), strict=True):
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      frame = frame.reformat(
        format=clip.pix_fmt, dst_colorspace=clip.matrix,
        dst_color_range=clip.range, interpolation=videos._EXACT,
      )  # fmt: skip
      frame.pts, frame.time_base = time, MILLISECOND
      container.mux(video.encode(frame))
    container.mux(video.encode())
    for i, sound in enumerate(sounds):
      rng = np.random.default_rng(i)
      wave = rng.integers(-9000, 9000, (1, 9600), np.int16)
      frame = av.AudioFrame.from_ndarray(wave, format='s16', layout='mono')
      frame.sample_rate = 48000
      # From 0: what the decoder needs first has a time below.
      frame.pts, frame.time_base = 0, Fraction(1, 48000)
      container.mux(sound.encode(frame))
      container.mux(sound.encode())
  return path


@contextlib.contextmanager
def remuxed(source, target, **options):
  """Copies a video; yields the new one, to be described before packets come."""
  with av.open(str(source)) as old, av.open(
    str(target), 'w', options=options
  ) as new:
    streams = [new.add_stream_from_template(each) for each in old.streams]
    yield new
    for packet in old.demux():
      if packet.size:
        packet.stream = streams[packet.stream.index]
        new.mux(packet)


def look_into(path):
  """Returns the frames, their times, the sounds' packets, and the format."""
  with av.open(f'file:{path}') as container:
    stream = container.streams.video[0]
    frames = list(container.decode(stream))
    images = [
      frame.to_ndarray(format='rgb24', interpolation=videos._EXACT)
      for frame in frames
    ]
    images = [
      np.rot90(image, frame.rotation // 90)
      for image, frame in zip(images, frames, strict=True)
    ]
    times = [round(1000 * frame.time) for frame in frames]
    kind = (frames[0].format.name, frames[0].colorspace, frames[0].color_range)
    rotation = frames[0].rotation
  with av.open(f'file:{path}') as container:
    sounds = [[] for _ in container.streams.audio]
    for packet in container.demux(*container.streams.audio) if sounds else ():
      if packet.size:
        sound = sounds[container.streams.audio.index(packet.stream)]
        sound.append((float(packet.pts * packet.time_base), bytes(packet)))
  return images, times, sounds, kind, rotation


def run(*args, **flags):
  """Runs the command in this process; returns its exit status."""
  argv = ['--backend', 'xla', *map(str, args)]
  for name, value in flags.items():
    argv += [f'--{name}', *([] if value is True else [str(value)])]
  return deblur.main(argv)


def psnr(a, b):
  return -10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2) + 1e-12)


@pytest.mark.parametrize('name', CLIPS)
def test_identity_keeps_a_video(identity, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  clip = CLIPS[name]
  source = write_clip(tmp_path / clip.name, clip)
  assert run('-i', clip.name, model_path=identity) == 0
  assert sorted(os.listdir()) == sorted([clip.name, 'results'])
  (target,) = pathlib.Path('results').iterdir()
  assert target.name == source.stem + '_out' + clip.suffix
  old, new = look_into(source), look_into(target)
  assert len(new[0]) == len(old[0]) == len(clip.times)
  assert new[1] == old[1]
  assert new[2] == old[2]
  assert len(new[2]) == len(clip.audio)
  pixels, matrix, range_ = new[3]
  assert pixels == (clip.stored or clip.pix_fmt)
  if clip.matrix != 2:
    assert (matrix, range_) == (clip.matrix, clip.range)
  assert new[4] == 0
  for a, b in zip(old[0], new[0], strict=True):
    assert a.shape == b.shape
    assert psnr(a, b) > 36
    assert abs(a.astype(float).mean() - b.mean()) < 1.5


def test_languages_and_chapters_stay(identity, tmp_path, capsys):
  whole = write_clip(
    tmp_path / 'whole.mkv', Clip('a.mkv', audio=('aac', 'libopus'))
  )
  chapter = {'id': 1, 'start': 0, 'end': 120, 'time_base': MILLISECOND,
             'metadata': {'title': 'Beach'}}  # fmt: skip
  source = tmp_path / 'a.mkv'
  with remuxed(whole, source) as new:
    languages = ('und', 'deu', 'fra')
    for stream, language in zip(new.streams, languages, strict=True):
      stream.metadata.update(language=language, title=f'In {language}')
    new.set_chapters([chapter])
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  with av.open(str(tmp_path / 'a_out.mkv')) as container:
    first, *sounds = container.streams
    assert first.type == 'video'
    assert [each.metadata['language'] for each in sounds] == ['deu', 'fra']
    assert [x.metadata['title'] for x in sounds] == ['In deu', 'In fra']
    (found,) = container.chapters()
  assert found['metadata'] == chapter['metadata']
  assert found['end'] * found['time_base'] == 120 * MILLISECOND
  # Times of a part, or of other rates, are others.
  for flags in ({'start': 0.04}, {'end': 0.1}, {'fps': 10}):
    capsys.readouterr()
    flags |= {'model_path': identity, 'overwrite': True}
    assert run('-i', source, '-o', tmp_path, **flags) == 0
    assert 'chapters' in capsys.readouterr().err
    with av.open(str(tmp_path / 'a_out.mkv')) as container:
      assert not container.chapters()


def test_sound_that_no_file_can_hold_is_left_out(identity, tmp_path, capsys):
  clip = Clip('a.avi', 'mjpeg', 'yuvj420p', range=2, audio=('adpcm_ms',))
  source = write_clip(tmp_path / 'a.avi', clip)
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  assert 'not kept: audio' in capsys.readouterr().err
  images, *_ = look_into(tmp_path / 'a_out.mp4')
  assert len(images) == len(clip.times)


@pytest.mark.parametrize(
  ('clip', 'lost'),
  [(Clip('a.mov', 'png', 'rgba'), 'alpha'),
   (Clip('a.mkv', 'ffv1', 'yuv420p12le'), 'more than 10 bits'),
   (Clip(options=(('flags', '+ildct+ilme'), ('x264-params', 'tff=1'))),
    'interlacing'),
   (Clip(options=(('x264-params', 'cll=1000,400'),)), 'HDR metadata')],
)  # fmt: skip
def test_what_frames_cannot_keep_is_told(
  identity, tmp_path, capsys, clip, lost
):
  source = write_clip(tmp_path / clip.name, clip)
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  assert f'not kept: {lost}' in capsys.readouterr().err


def write_broken(path, codec='mjpeg'):
  """Writes 6 frames of which the third cannot be decoded."""
  clip = Clip(path.name, codec, 'yuvj420p', range=2)
  whole = write_clip(path.with_name('whole.mkv'), clip)
  with (
    av.open(str(whole)) as old, av.open(str(path), 'w') as new,
  ):  # fmt: skip
    stream = new.add_stream_from_template(old.streams.video[0])
    for i, packet in enumerate(old.demux(video=0)):
      if packet.size:
        data = b'no picture at all' if i == 2 else bytes(packet)
        copy = av.Packet(data)
        copy.pts, copy.dts = packet.pts, packet.dts
        copy.time_base, copy.stream = packet.time_base, stream
        new.mux(copy)
  return whole, path


def test_a_broken_frame_is_passed_over_not_dropped(identity, tmp_path, capsys):
  whole, broken = write_broken(tmp_path / 'broken.mkv')
  out = tmp_path / 'out'
  assert run('-i', broken, '-o', out, model_path=identity) == 1
  said = capsys.readouterr().err
  assert 'broken.mkv: 1 frames are damaged and show the one before' in said
  old, new = look_into(whole), look_into(out / 'broken_out.mkv')
  assert new[1] == old[1]
  assert psnr(new[0][2], new[0][1]) > 38
  assert psnr(new[0][3], old[0][3]) > 38


def test_a_truncated_video_is_restored_so_far(identity, tmp_path, capsys):
  clip = Clip('a.mkv', 'ffv1', times=tuple(range(0, 6000, 100)))
  source = write_clip(tmp_path / 'a.mkv', clip)
  os.truncate(source, source.stat().st_size * 2 // 3)
  out = tmp_path / 'out'
  assert run('-i', source, '-o', out, model_path=identity) == 1
  images, *_ = look_into(out / 'a_out.mkv')
  assert len(images) > len(clip.times) // 3
  said = capsys.readouterr().err
  assert 'a.mkv: it ends after 3.' in said
  assert f'a_out.mkv has {len(images)} frames' in said


def test_times_that_jump_back_are_told(identity, tmp_path, capsys):
  source = write_clip(tmp_path / 'a.ts', Clip('a.ts'))
  source.write_bytes(2 * source.read_bytes())
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 1
  said = capsys.readouterr().err
  assert 'a.ts: its times jump back' in said
  assert 'a_out.mp4 has 12 frames' in said


@pytest.mark.parametrize('content', [b'', b'text\n', b'\0' * 5000])
def test_what_is_no_video_is_told_and_leaves_nothing(
  identity, tmp_path, capsys, content
):
  (tmp_path / 'a.mp4').write_bytes(content)
  good = write_clip(tmp_path / 'b.mp4', Clip())
  out = tmp_path / 'out'
  args = ('-i', tmp_path / 'a.mp4', good, '-o', out)
  assert run(*args, model_path=identity) == 1
  said = capsys.readouterr().err
  assert f'Error: {tmp_path}/a.mp4: it cannot be read' in said
  assert '1 restored, 0 skipped, 1 failed' in said
  assert os.listdir(out) == ['b_out.mp4']


def test_sound_alone_is_no_video(identity, tmp_path, capsys):
  source = tmp_path / 'a.mp4'
  with av.open(str(source), 'w') as container:
    sound = container.add_stream('aac', rate=48000, layout='mono')
    wave = np.zeros((1, 4800), np.int16)
    frame = av.AudioFrame.from_ndarray(wave, format='s16', layout='mono')
    frame.sample_rate = 48000
    container.mux(sound.encode(frame))
    container.mux(sound.encode())
  assert run('-i', source, '-o', tmp_path / 'o', model_path=identity) == 1
  assert 'it has no video stream' in capsys.readouterr().err


def test_a_part_of_a_video(identity, tmp_path):
  clip = Clip(times=tuple(range(0, 2000, 40)), audio=('aac',),
              options=(('g', '10'),))  # fmt: skip
  source = write_clip(tmp_path / 'a.mp4', clip)
  flags = {'start': 0.5, 'end': 1.2, 'model_path': identity}
  assert run('-i', source, '-o', tmp_path, **flags) == 0
  old, new = look_into(source), look_into(tmp_path / 'a_out.mp4')
  kept = [i for i, time in enumerate(old[1]) if 500 <= time < 1200]
  assert new[1] == [old[1][i] - 500 for i in kept]
  for i, image in zip(kept, new[0], strict=True):
    assert psnr(image, old[0][i]) > 38


def test_a_part_of_a_broadcast(identity, tmp_path):
  clip = Clip('a.ts', times=tuple(range(0, 2000, 40)), audio=('mp2',),
              options=(('g', '50'),))  # fmt: skip
  source = write_clip(tmp_path / 'a.ts', clip)
  flags = {'start': 1, 'end': 1.6, 'model_path': identity}
  assert run('-i', source, '-o', tmp_path, **flags) == 0
  old, new = look_into(source), look_into(tmp_path / 'a_out.mp4')
  assert len(new[1]) in (14, 15)  # Sound begins before the picture, or not.
  assert new[1][0] < 40
  first = next(i for i, time in enumerate(old[1]) if time >= old[1][0] + 1000)
  errors = [psnr(new[0][0], image) for image in old[0][first - 3 : first + 2]]
  assert max(errors) > 34


def test_a_broadcast_begins_at_its_beginning(identity, tmp_path):
  clip = Clip('a.ts', times=tuple(range(9000, 10_000, 40)))
  source = write_clip(tmp_path / 'a.ts', clip)
  assert look_into(source)[1][0] >= 9000
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  assert look_into(tmp_path / 'a_out.mp4')[1] == list(range(0, 1000, 40))


def test_a_recording_that_begins_late_is_whole(identity, tmp_path, capsys):
  times = tuple(range(30_000, 32_000, 40))
  source = write_clip(tmp_path / 'a.mkv', Clip('a.mkv', times=times))
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  assert look_into(tmp_path / 'a_out.mkv')[1] == list(times)
  flags = {'start': 1, 'overwrite': True, 'model_path': identity}
  assert run('-i', source, '-o', tmp_path, **flags) == 0
  assert look_into(tmp_path / 'a_out.mkv')[1] == list(range(0, 1000, 40))
  for start, status, said in ((99, 1, 'no frames there'), (1e13, 2, 'below')):
    flags['start'] = start
    assert run('-i', source, '-o', tmp_path, **flags) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('right', [1, -1])
@pytest.mark.parametrize('down', [1, -1])
@pytest.mark.parametrize('transposed', [False, True])
def test_frames_are_written_as_they_are_shown(
  identity, tmp_path, transposed, down, right
):
  clip = Clip()
  source = write_clip(tmp_path / 'a.mp4', clip)
  content = bytearray(source.read_bytes())
  at = content.index(b'tkhd') + 44
  # x, y is shown at a x + c y, b x + d y.
  a, b, c, d = (0, down, right, 0) if transposed else (right, 0, 0, down)
  matrix = [a, b, 0, c, d, 0, 0, 0, 1 << 14]
  content[at : at + 36] = struct.pack('>9i', *(n << 16 for n in matrix))
  source.write_bytes(content)
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  images, *_, rotation = look_into(tmp_path / 'a_out.mp4')
  assert rotation == 0
  for expected, image in zip(pictures(clip), images, strict=True):
    expected = expected.swapaxes(0, 1) if transposed else expected
    assert psnr(expected[::down, ::right], image) > 36


def test_a_trimmed_video_is_whole(identity, tmp_path):
  clip = Clip(times=tuple(range(0, 2000, 40)))
  source = write_clip(tmp_path / 'a.mp4', clip)
  content = bytearray(source.read_bytes())
  at = content.index(b'elst') + 12  # Its length, in milliseconds.
  assert struct.unpack_from('>I', content, at) == (2000,)
  struct.pack_into('>I', content, at, 1000)
  source.write_bytes(content)
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  assert look_into(tmp_path / 'a_out.mp4')[1] == list(range(0, 1000, 40))


def test_b_frames_of_avi_come_in_order(identity, tmp_path):
  clip = Clip('a.avi', times=tuple(range(0, 1200, 40)),
              options=(('preset', 'slow'),))  # fmt: skip
  source = write_clip(tmp_path / 'a.avi', clip)
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  images, times, *_ = look_into(tmp_path / 'a_out.mp4')
  assert np.diff(times).tolist() == [40] * 29
  for expected, image in zip(pictures(clip), images, strict=True):
    assert psnr(expected, image) > 34


def test_what_phones_and_players_look_for_stays(identity, tmp_path):
  sounds = write_clip(tmp_path / 's.mp4', Clip(audio=('aac', 'aac')))
  source, place = tmp_path / 'a.mov', 'com.apple.quicktime.location.ISO6709'
  with remuxed(sounds, source, movflags='use_metadata_tags') as new:
    new.metadata.update({place: '+52.5+013.4/', 'title': 'Beach'})
    new.streams[1].disposition = 0
    new.streams[2].disposition = 1  # The one to be played.
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  with av.open(str(tmp_path / 'a_out.mov')) as container:
    assert container.metadata[place] == '+52.5+013.4/'
    assert container.metadata['title'] == 'Beach'
    marks = [int(each.disposition) & 1 for each in container.streams.audio]
  assert marks == [0, 1]


def test_sound_is_cut_with_the_video(identity, tmp_path):
  clip = Clip(audio=('aac',))  # 200 ms of sound, as of frames.
  source = write_clip(tmp_path / 'a.mp4', clip)
  run('-i', source, '-o', tmp_path, start=0.08, model_path=identity)
  old, new = look_into(source), look_into(tmp_path / 'a_out.mp4')
  expected = [data for time, data in old[2][0] if time >= 0.08]
  assert [data for _, data in new[2][0]] == expected


def test_another_frame_rate_leaves_the_sound_out(identity, tmp_path, capsys):
  source = write_clip(tmp_path / 'a.mp4', CLIPS['variable_rate'])
  assert run('-i', source, '-o', tmp_path, fps=10, model_path=identity) == 0
  assert 'not kept: audio' in capsys.readouterr().err
  _, times, sounds, *_ = look_into(tmp_path / 'a_out.mp4')
  assert times == [0, 100, 200, 300, 400, 500]
  assert not sounds


def test_sound_that_is_left_out_may_be_longer(identity, tmp_path, monkeypatch):
  monkeypatch.setattr(videos, 'SLACK', 0.05)
  clip = Clip(times=(0, 40), audio=('aac',))  # 200 ms of sound.
  source = write_clip(tmp_path / 'a.mp4', clip)
  assert run('-i', source, '-o', tmp_path, fps=25, model_path=identity) == 0


def test_frames_of_a_pipe(identity, tmp_path):
  frames = np.stack(list(pictures(Clip())))
  command = (*COMMAND, '-i', '-', '--size', '64x48', '--backend', 'xla')
  command += ('--model_path', identity)

  def pipe(data):
    return subprocess.run(
      command, input=data, capture_output=True, cwd=tmp_path
    )

  done = pipe(frames.tobytes())
  assert (done.returncode, done.stdout) == (0, frames.tobytes()), done.stderr
  done = pipe(frames.tobytes()[:-1])
  assert done.returncode == 1
  assert b'it ends with 9215 bytes of a frame of 9216' in done.stderr
  assert done.stdout == frames[:-1].tobytes()
  assert not os.listdir(tmp_path)


def test_raw_frames_have_a_largest_size(identity, capsys):
  assert run('-i', '-', size='99999x99999', model_path=identity) == 2
  said = capsys.readouterr().err
  assert "size is '99999x99999'; expected at most 178,956,970 pixels" in said


def test_sigterm_leaves_nothing_half_written(identity, tmp_path):
  clip = Clip(times=tuple(range(0, 120_000, 40)))
  source, out = write_clip(tmp_path / 'a.mp4', clip), tmp_path / 'out'
  command = (*COMMAND, '-i', source, '-o', out, '--backend', 'xla')
  process = subprocess.Popen(
    (*command, '--model_path', identity), stderr=subprocess.PIPE, text=True
  )
  while not list(out.glob('a_out.mp4.*.tmp')):
    assert process.poll() is None
    time.sleep(0.01)
  process.terminate()
  _, said = process.communicate()
  assert process.returncode == 128 + signal.SIGINT
  assert 'stopped; the same command again skips what is done' in said
  assert not os.listdir(out)


def test_processes_do_not_write_to_the_same_file(identity, tmp_path):
  """Another one, stopped as it writes, takes nothing away from this one."""
  clip = Clip(times=tuple(range(0, 12_000, 40)))
  source, out = write_clip(tmp_path / 'a.mp4', clip), tmp_path / 'out'
  command = (*COMMAND, '-i', source, '-o', out, '--model_path', identity)

  def begin(files):
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob('a_out.mp4.*.tmp'))) < files:
      assert process.poll() is None
      time.sleep(0.01)
    return process

  first = begin(1)
  first.send_signal(signal.SIGSTOP)  # Until the other one has begun.
  other = begin(2)
  other.terminate()
  other.communicate()
  first.send_signal(signal.SIGCONT)
  _, said = first.communicate()
  assert first.returncode == 0, said
  assert os.listdir(out) == ['a_out.mp4']
  assert len(look_into(out / 'a_out.mp4')[0]) == 300


def test_a_cover_is_not_the_video(identity, tmp_path):
  source = tmp_path / 'a.mkv'
  with av.open(str(source), 'w') as output:
    cover, video = (
      output.add_stream(codec, rate=25) for codec in ('mjpeg', 'libx264')
    )
    cover.width = cover.height = 16
    cover.pix_fmt = 'yuvj420p'
    video.width, video.height, video.pix_fmt = 64, 48, 'yuv420p'
    for i in range(4):
      for stream in (cover, video) if i == 0 else (video,):
        size = (stream.height, stream.width, 3)
        frame = av.VideoFrame.from_ndarray(np.full(size, 9 * i, np.uint8))
        frame.pts, frame.time_base = i, Fraction(1, 25)
        output.mux(stream.encode(frame))
    for stream in (cover, video):
      output.mux(stream.encode())
  assert run('-i', source, '-o', tmp_path, model_path=identity) == 0
  found, *_ = look_into(tmp_path / 'a_out.mkv')
  assert [image.shape for image in found] == [(48, 64, 3)] * 4


def test_decoding_restoring_and_encoding_overlap(tmp_path, monkeypatch):
  source = write_clip(tmp_path / 'a.mp4', Clip(times=tuple(range(0, 400, 40))))
  # Frame 7 is decoded, one after the third restored, and frame 2 written, when
  # each of these waits for the two others.
  meeting, decoded = threading.Barrier(3, timeout=60), threading.Event()
  calls, read = itertools.count(1), videos._read

  def read_seven(*args, **options):
    for count, frame in enumerate(read(*args, **options), 1):
      if count == 7:
        decoded.set()
        meeting.wait()
      yield frame

  def enhance(image):
    call = next(calls)
    if call in (2, 3):
      assert decoded.wait(60)
    elif call == 4:
      meeting.wait()
    return image

  monkeypatch.setattr(videos, '_read', read_seven)
  report = videos.restore_video(
    source, tmp_path / 'b.mp4', enhance,
    on_frame=lambda frames: frames == 2 and meeting.wait(),
  )  # fmt: skip
  assert report.frames == 10


def test_frames_restored_at_once_come_in_order(tmp_path):
  clip = Clip('a.mkv', 'ffv1', 'bgr0', times=tuple(range(0, 800, 40)))
  source = write_clip(tmp_path / clip.name, clip)
  lock, running, most = threading.Lock(), 0, []
  together = threading.Barrier(videos.STREAMS, timeout=60)

  def enhance(image):
    nonlocal running
    with lock:
      running += 1
      most.append(running)
      call = len(most)
    if 1 < call <= 1 + videos.STREAMS:
      together.wait()  # However slow the machine is.
    time.sleep(0.04 if call % 2 else 0.01)  # Each second one is faster.
    with lock:
      running -= 1
    return image

  report = videos.restore_video(source, tmp_path / 'b.mkv', enhance)
  assert report.frames == len(clip.times)
  # The first one, which opens the network, is alone.
  assert most[1] == 1 and max(most) == videos.STREAMS
  images, *_ = look_into(tmp_path / 'b.mkv')
  blues = [image[..., 2].mean() for image in images]
  assert blues == sorted(blues)


def test_a_failure_leaves_no_file(tmp_path):
  source = write_clip(tmp_path / 'a.mp4', Clip())

  def enhance(image):
    raise MemoryError('no more')

  with pytest.raises(MemoryError, match='no more'):
    videos.restore_video(source, tmp_path / 'b.mp4', enhance)
  assert os.listdir(tmp_path) == ['a.mp4']


def test_side_by_side(identity, tmp_path):
  source = write_clip(tmp_path / 'a.mp4', Clip())
  flags = {'compare': True, 'model_path': identity}
  assert run('-i', source, '-o', tmp_path, **flags) == 0
  images, *_ = look_into(tmp_path / 'a_out.mp4')
  assert images[0].shape == (48, 128, 3)
  assert psnr(images[0][:, :64], images[0][:, 64:]) > 35


@pytest.mark.slow
@pytest.mark.skipif(
  sys.platform != 'linux', reason='reads the peak memory from /proc'
)
@pytest.mark.parametrize(
  ('network', 'size', 'counts', 'growth'),
  [
    ('identity', (320, 640), (1, 300), 1.2),
    # Once queues, encoder and both streams are full.
    ('fast', (720, 1280), (30, 300), 1.05),
  ],
)
def test_memory_does_not_grow_with_the_video(
  identity, tmp_path, network, size, counts, growth
):
  """The frames of the longer ones are 180 and 830 MB."""
  path = identity if network == 'identity' else restore.MODELS / network
  peaks = []
  for count in counts:
    clip = Clip(f'{count}.mp4', size=size,
                times=tuple(range(0, 40 * count, 40)))  # fmt: skip
    source = write_clip(tmp_path / clip.name, clip)
    argv = ['-i', source, '-o', tmp_path, '--model_path', path]
    code = f"""if True:
      import pathlib
      from pynas_jax import deblur
      assert deblur.main({list(map(str, argv))}) == 0
      print(pathlib.Path('/proc/self/status').read_text())
    """
    # As people run it: what tests set for JAX costs memory by thread.
    unset = ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS')
    env = {k: v for k, v in os.environ.items() if k not in unset}
    done = subprocess.run(
      [sys.executable, '-c', code], check=True, capture_output=True, text=True,
      env=env,
    )  # fmt: skip
    peaks.append(int(re.search(r'VmHWM:\s+(\d+) kB', done.stdout)[1]))
  assert peaks[1] <= growth * peaks[0], peaks
