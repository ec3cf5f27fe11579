"""Every setting, once, with its unit and its source.

`base()` declares all settings; its values run on the bundled photographs on a
laptop in minutes. `paper()` holds the values of the PyNAS paper (section 3.2),
`shrink()` the values of a seconds-long smoke run. Files in `configs/` start
from one of them; the command line and keyword arguments override.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import functools
import math
import numbers
from typing import Any

import ml_collections

from pynas_jax import genotype as genotype_lib

MODES = ('search', 'train', 'evaluate', 'benchmark', 'pipeline')
LOSSES = ('mse', 'psnr', 'charbonnier', 'mse_ssim', 'mse_ssim_code')
# Task -> what people call it.
TASKS = {
  'deblur': 'deblurring', 'denoise': 'denoising',
  'super_resolution': 'super-resolution', 'jpeg': 'JPEG artifacts',
}  # fmt: skip
CHOICES = {
  'mode': MODES,
  'task': tuple(TASKS),
  'space': ('pynas', 'hinas'),
  'model.upsample': genotype_lib.UPSAMPLES,
  'model.link': genotype_lib.LINKS,
  'model.share': ('none', 'cells', 'weights'),
  'data.name': (
    'photos', 'folder', 'gopro', 'video_deblurring', 'kohler', 'reds',
    'realblur', 'rain800', 'sidd_medium', 'bsd500', 'div2k', 'set5', 'set14',
    'urban100', 'bsd100', 'set12', 'bsd68', 'kodak24', 'live1', 'classic5',
  ),
  'search.estimator': ('one_path', 'two_path', 'mixture', 'reinforce'),
  'search.loss': LOSSES,
  'search.score': ('derived', 'supernet'),
  'search.cost': ('none', 'latency', 'macs'),
  'search.cost_form': ('add', 'mul'),
  'search.objective': ('psnr', 'fastest', 'knee'),
  'search.optimizer': ('sgd', 'adam'),
  'train.loss': LOSSES,
  'train.optimizer': ('muon', 'adam', 'sgd'),
  'train.schedule': ('constant', 'step', 'cosine', 'poly'),
  'train.dtype': ('float32', 'bfloat16'),
  'benchmark.dtype': ('float32', 'bfloat16', 'int8'),
}
REAL_TIME_MS = 33.0  # Of a frame: 30 a second (PyNAS section 3.3).
MAX_SIGMA = 100  # Of noise, of 255; papers go to 70.
POSITIVE = (
  'model.cells_per_stage', 'model.unshuffle', 'hinas.layers', 'hinas.nodes',
  'hinas.width', 'hinas.stem_width', 'hinas.sep_repeats', 'data.crop',
  'data.eval_crop', 'data.scale', 'data.num_validation', 'data.blurs_per_photo',
  'data.kernel_steps', 'data.light_gamma', 'search.num_trials',
  'search.num_steps', 'search.batch_size', 'search.alpha_every',
  'search.eval_every', 'search.patience', 'search.weight_lr', 'search.alpha_lr',
  'search.tau_start', 'search.tau_end', 'search.score_steps', 'train.num_steps',
  'train.batch_size', 'train.lr', 'train.decay_every', 'train.eval_every',
  'benchmark.height', 'benchmark.width', 'benchmark.runs',
)  # fmt: skip


class SettingError(ValueError):
  """A setting that cannot be used; the message names it and the way out."""


def base() -> ml_collections.ConfigDict:
  """Returns all settings with the values of the demo."""
  c = ml_collections.ConfigDict()
  c.mode = 'pipeline'  # What `main` does: one of MODES.
  c.seed = 0  # Every random choice follows from it.
  c.task = 'deblur'  # What is wrong with the images: the Recipe of `degrade`.
  c.space = 'pynas'  # Search space, by its name in `spaces.SPACES`.
  # Architecture to train, or to time untrained: a genotype.json, the name of a
  # reference ('dmphn', 'dmphn-1-2-4', 'nafnet-32'), or '' for the one in the
  # workdir.
  c.genotype = ''
  # Trained network to evaluate or time: a workdir, a checkpoint, a release
  # folder or the name of a network of this package; '' is the workdir of this
  # run.
  c.checkpoint = ''

  c.model = m = ml_collections.ConfigDict()
  m.widths = (16, 32, 64)  # Channels per stage. DMPHN: 32, 64, 128.
  m.cells_per_stage = 1  # DMPHN: 2.
  m.candidates = (  # PyNAS section 2.3.
    'conv_3x3', 'conv_5x5', 'conv_3x3_dil2', 'sep_conv_3x3', 'zero',
  )  # fmt: skip
  m.upsample = 'pixel_shuffle'
  m.link = 'add'  # Reading of Eq. 2: DMPHN adds; 'concat' concatenates.
  m.global_residual = True  # Ours; DMPHN predicts the image itself.
  m.unshuffle = 2  # Ours: fold 2x2 or 4x4 pixels into channels, for speed.
  m.zero_init_last = True  # Ours: start from the identity (or zero).
  # Gradients compute features anew, instead of keeping all: less memory, more
  # time. With jax 0.10, CPUs keep them all the same.
  m.remat = False
  # 'none' searches each scale (PyNAS_d), 'cells' shares one cell structure
  # over all scales (PyNAS_s), 'weights' shares the weights as well.
  m.share = 'none'
  m.joint = False  # Search all scales at once, not coarse to fine; to compare.

  c.hinas = h = ml_collections.ConfigDict()  # The model of the space 'hinas'.
  h.layers = 2  # HiNAS: 3 for denoising, 2 for super-resolution.
  h.nodes = 3  # Of a cell. HiNAS: 4, 3.
  h.width = 8  # Channels of a node. Code: 10 in the search, 20 after it.
  h.width_factors = (1.0, 2.0, 4.0)  # Of the levels. Code: 1, 1.5, 2.
  h.stem_width = 32  # Channels of start and end. Code: 64 at the start.
  h.candidates = genotype_lib.HINAS_OPERATORS  # HiNAS section 3.1.
  h.per_layer = True  # LWAS: layers have architectures of their own.
  h.share_cells = True  # Eq. 5; False is Eq. 6, which costs memory.
  h.sep_repeats = 1  # Times that a separable convolution is done. Code: 2.
  h.residual = True  # Predict output minus (enlarged) input.

  c.data = d = ml_collections.ConfigDict()
  # Bundled photographs, a 'folder' of your own, or a dataset to be prepared.
  d.name = 'photos'
  d.root = ''  # Folder of the images; see data/files.py for what may be in it.
  d.subset = ''  # Of several inputs: 'blur' or 'blur_gamma', 'J' or 'R'.
  d.prepared_dir = ''  # Of prepared datasets; '' is TFDS's own folder.
  d.tiles = False  # Train on a prepared dataset's tiles: faster to decode.
  d.validation_fraction = 0.1  # Of the training pairs (PyNAS section 3.2).
  # Of the other training pairs, those for the alphas alone in a search; 0 lets
  # them learn on the validation pairs, as PyNAS. HiNAS: 0.5.
  d.alpha_fraction = 0.0
  d.crop = 64  # Training crop, pixels. PyNAS: 256, and 288 for odd schemes.
  d.eval_crop = 288  # Centre crop scored during search and training, pixels.
  # Images are cut into squares of this side to be scored; 0 is whole images.
  d.eval_patch = 0  # HiNAS: 64.
  d.num_validation = 8  # Pairs scored during search and training, at most.
  d.num_threads = 2  # Loader threads; 0 loads in the training loop.
  d.augment = True  # Random flips and quarter turns, the same for a pair.
  d.saturation_jitter = 0.0  # SDNet: 0.2, factors of 0.8 to 1.2; 0 is off.
  d.grey = False  # As grey images, in three equal channels. HiNAS: denoising.
  # How sharp images are degraded: the bundled ones, and datasets without pairs.
  d.scale = 4  # Of super-resolution: 2, 3 or 4 times as large.
  d.blurs_per_photo = 4  # Degradations of each held-out image.
  d.kernel_size = 9  # Random-walk blur kernel side, pixels, odd; 1 is no blur.
  d.kernel_steps = 16  # Steps of the camera's random walk.
  d.noise_sigma = 1.0  # Gaussian noise after blur, of 255. Denoising: 15 to 70.
  # Denoising: clip noisy images and round them to 8 bits, as a file does; most
  # papers and the code of HiNAS do not.
  d.noise_clip = True
  d.light_gamma = 1.0  # Blur to this power of the image; 2.2 is linear light.
  d.highlight_gain = 1.0  # Light that white pixels hold, at most; 1 is white.
  d.shot_noise = 0.0  # Value of one photon, such as 0.001; 0 is off.
  d.varying = 0.0  # Part of the pictures whose blur varies over the frame.
  # Lowest and highest, such as (60, 95); () is no JPEG. Task 'jpeg': (10, 40).
  d.jpeg_quality = ()

  c.search = s = ml_collections.ConfigDict()
  s.schemes = ('1-2', '1-3', '1-4')  # Proposed; () is all in the limits.
  s.unshuffles = ()  # Ours: choices of model.unshuffle; () keeps it.
  s.base_widths = ()  # Ours: choices of model.widths[0]; () keeps it.
  s.num_trials = 2  # Schemes to try, at random, none twice.
  s.max_hours = 0.0  # Start no trial after so much time; 0 is no limit.
  # How alphas learn. PyNAS: 'one_path', by the gradient of the sampled gate;
  # ProxylessNAS: 'two_path'; HiNAS, as DARTS: 'mixture', all operators at once;
  # ours: 'reinforce', by differences of losses.
  s.estimator = 'reinforce'
  s.warmup_steps = 150  # Weights only, uniformly sampled operators.
  s.num_steps = 270  # Weight steps a stage, warm-up included. PyNAS: 80 epochs.
  s.batch_size = 8  # PyNAS: 32.
  # PyNAS: 'mse' (Eq. 9). HiNAS: 'mse_ssim' (Eq. 7), or as in its code. Ours:
  # 'psnr' is -PSNR per image.
  s.loss = 'psnr'
  s.alpha_every = 1  # Weight steps between alpha steps.
  s.optimizer = 'adam'  # Of the weights. PyNAS: 'sgd', slow in few steps.
  s.weight_lr = 2e-3  # Cosine. PyNAS: 5e-4. HiNAS: 0.025.
  s.weight_lr_end = 0.0  # HiNAS: 0.001.
  s.weight_decay = 0.0  # Of 'sgd'. HiNAS: 3e-4.
  s.momentum = 0.9  # Of 'sgd'.
  s.clip_norm = 1.0  # Of the weight gradient; 0 is off. Ours.
  s.alpha_lr = 2e-2  # Adam. PyNAS, HiNAS: 1e-3.
  s.alpha_decay = 0.0  # Weight decay of the alphas. HiNAS: 1e-3.
  s.tau_start = 5.0  # Gumbel temperature, annealed linearly (GDAS: 10).
  s.tau_end = 0.5  # (GDAS: 0.1.)
  s.eval_every = 30  # Steps between scores, and saves.
  s.score = 'derived'  # Network that is scored. HiNAS: the 'supernet'.
  s.first_score = 0  # Step from which scores count. HiNAS: epoch 61 of 100.
  s.patience = 5  # Scores without improvement before early stopping.
  s.collapse_fraction = 0.5  # Stop when more of the cells than this are zero.
  # Ours: passes over a stage's cells, each given its best operator; 0 is off.
  s.refine_passes = 1
  s.score_steps = 150  # Training steps of the whole candidate, for its score.
  # Ours: trials after these that change one cell of the best network so far;
  # they train from new weights, so that train.inherit must be off.
  s.local_trials = 0
  # Ours: what networks cost, in the alphas' loss: 'latency' of their layers on
  # this device, or 'macs', multiply-adds; both for one frame of `benchmark`.
  s.cost = 'none'
  s.cost_form = 'add'  # 'add' or 'mul', the two of the ProxylessNAS code.
  s.cost_weight = 0.1  # Factor of 'add' (ProxylessNAS: 0.1), exponent of 'mul'.
  s.max_latency_ms = 0.0  # Of a network that may win; 0 is no limit.
  s.max_params = 0  # Likewise.
  s.max_gmacs = 0.0  # Likewise, 1e9 multiply-adds for one frame.
  s.objective = 'psnr'  # 'fastest' within psnr_slack of the best, or 'knee'.
  s.psnr_slack = 0.1  # In dB.

  c.train = t = ml_collections.ConfigDict()
  t.num_steps = 3000  # PyNAS: 3000 epochs.
  t.batch_size = 8  # PyNAS: 6.
  t.optimizer = 'muon'  # PyNAS: 'adam'. HiNAS: 'sgd', momentum 0.9.
  t.lr = 2e-3  # PyNAS: 1e-4. HiNAS: 0.05.
  # 'step' multiplies by decay_rate every decay_every; 'poly' is the share of
  # the steps that are left, to the power of 0.9 (HiNAS's code).
  t.schedule = 'cosine'
  t.decay_every = 1000  # Steps, for 'step'.
  t.decay_rate = 0.1  # PyNAS section 3.2.
  t.loss = 'psnr'  # As search.loss.
  t.clip_norm = 1.0  # Of the gradient; 0 is off. Ours.
  t.ema_decay = 0.0  # Of an average of the weights, which is kept; 0 is off.
  t.dtype = 'float32'  # Of activations; weights stay float32.
  t.eval_every = 300  # Steps between validation scores, and saves.
  # Of a pipeline: start from the weights that the search trained.
  t.inherit = True
  # Trained network to train further, named as `checkpoint` names one.
  t.start_from = ''

  c.benchmark = b = ml_collections.ConfigDict()
  b.height, b.width = 720, 1280  # Pixels.
  b.runs = 20  # Timed runs after warm-up.
  b.dtype = 'float32'  # Of what is timed; searches count float32.
  b.backends = ()  # Runtimes to compare, such as ('xla',); () is all here.
  return c


def paper(odd: bool = True) -> ml_collections.ConfigDict:
  """Returns the settings of PyNAS section 3.2 on GoPro.

  GoPro has 2103 training pairs, 210 of them held out: an epoch of search is 59
  steps of 32 pairs, an epoch of training 315 steps of 6 pairs.

  Args:
    odd: Whether odd schemes are searched too, which need crops of 288.
  """
  c = base()
  c.model.widths, c.model.unshuffle = (32, 64, 128), 1
  c.model.cells_per_stage = 2
  c.data.name, c.data.root = 'gopro', 'data'
  c.data.tiles = True  # Ours: crops of stored tiles, for speed.
  c.data.crop = 288 if odd else 256
  c.data.num_validation = 210
  c.data.augment = False  # As the DMPHN code: random crops only.
  c.search.schemes = ()
  c.search.num_trials = 10  # Not in the paper.
  c.search.batch_size = 32
  c.search.warmup_steps = 59 * 10  # Length not in the paper.
  c.search.num_steps = c.search.warmup_steps + 59 * 80
  c.search.estimator, c.search.optimizer = 'one_path', 'sgd'
  c.search.weight_lr, c.search.alpha_lr = 5e-4, 1e-3
  c.search.clip_norm = 0.0
  c.search.loss = 'mse'
  c.search.eval_every = 59
  c.search.patience = 10
  c.search.refine_passes = 0
  c.search.score_steps = 315 * 210
  c.train.num_steps = 315 * 3000
  c.train.batch_size = 6
  c.train.optimizer = 'adam'
  c.train.lr, c.train.schedule = 1e-4, 'step'
  c.train.decay_every = 315 * 1000  # As the DMPHN code.
  c.train.loss = 'mse'
  c.train.clip_norm = 0.0
  c.train.eval_every = 315 * 5
  c.train.inherit = False
  c.benchmark.runs = 100
  return c


def box() -> ml_collections.ConfigDict:
  """Returns the settings of the network that comes with the package."""
  c = base()
  c.model.cells_per_stage = 2
  # All candidates cost about as much; a supernet of minutes prefers `zero`.
  c.model.candidates = ('conv_3x3', 'conv_3x3_dil2', 'sep_conv_3x3')
  c.data.name, c.data.root = 'folder', 'data/box'
  c.data.eval_crop, c.data.num_validation = 224, 100
  c.search.schemes, c.search.num_trials = ('1',), 1
  c.search.max_gmacs = 10.0  # 33 ms at 720p on two cores (OpenVINO, bfloat16).
  c.search.warmup_steps, c.search.num_steps = 5000, 7000
  c.search.eval_every, c.search.score_steps = 1000, 100
  c.train.num_steps, c.train.eval_every = 140_000, 5000
  c.train.batch_size, c.train.ema_decay = 4, 0.999
  c.train.inherit = False
  return c


def hinas(
  task: str, *, scale: int = 1, sigma: float = 0.0
) -> ml_collections.ConfigDict:
  """Returns the settings of HiNAS, section 4.1.

  An epoch of search is every image of one half of the training images once:
  BSD500 has 300, of which 2 % are left out, DIV2K 800. The paper does not say
  how many crops of an image that is.

  Args:
    task: 'denoise' on BSD500, or 'super_resolution' on DIV2K.
    scale: Factor of super-resolution.
    sigma: Of the noise, of 255.
  """
  c = base()
  c.task, c.space = task, 'hinas'
  denoise = task == 'denoise'
  h, d, s, t = c.hinas, c.data, c.search, c.train
  h.layers, h.nodes = (3, 4) if denoise else (2, 3)
  # As in the code's training; its search has half the width, 10 and 8.
  h.width, h.stem_width = (20, 64) if denoise else (16, 64)
  c.model.zero_init_last = False
  d.root, d.validation_fraction, d.alpha_fraction = 'data', 0.02, 0.5
  d.name = 'bsd500' if denoise else 'div2k'
  d.noise_sigma, d.grey = sigma, denoise
  d.scale, d.crop = scale, 64 * scale  # The network sees 64x64.
  d.eval_crop = 64 * scale * 4
  d.blurs_per_photo, d.num_validation = 1, 16
  s.schemes, s.num_trials = ('1',), 1
  s.estimator, s.score, s.loss = 'mixture', 'supernet', 'mse_ssim'
  s.optimizer, s.momentum, s.weight_decay = 'sgd', 0.9, 3e-4
  s.weight_lr, s.weight_lr_end = 0.025, 0.001
  s.alpha_lr, s.alpha_decay = 1e-3, 1e-3
  s.batch_size = 8 if denoise else 24
  epoch = 147 // 8 if denoise else 392 // 24
  s.warmup_steps, s.num_steps = 20 * epoch, 100 * epoch
  s.eval_every, s.first_score, s.patience = epoch, 61 * epoch, 100
  s.clip_norm, s.collapse_fraction = 0.0, 1.0
  s.refine_passes = 0
  s.score_steps = 1  # What was found is trained afresh.
  t.num_steps = 400_000 if denoise else 600_000
  t.batch_size, t.optimizer, t.lr, t.schedule = 24, 'sgd', 0.05, 'poly'
  t.loss, t.clip_norm, t.eval_every = 'mse_ssim', 0.0, 2000
  t.inherit = False
  c.benchmark.height, c.benchmark.width = 321, 481  # As the images of BSD500.
  return c


# Variants of the files in `configs/` that have the settings of HiNAS.
HINAS = {
  f'denoise{sigma}': functools.partial(hinas, 'denoise', sigma=float(sigma))
  for sigma in (30, 50, 70)
} | {
  f'sr{scale}': functools.partial(hinas, 'super_resolution', scale=scale)
  for scale in (2, 3, 4)
}


def shrink(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the settings of a run of seconds, to check that all parts turn."""
  c.model.widths, c.model.cells_per_stage = (4, 8), 1
  c.model.unshuffle = 1
  # Most of its seconds are spent on compiling, which each of them prolongs.
  c.model.candidates = ('conv_3x3', 'sep_conv_3x3', 'zero')
  h = c.hinas
  h.candidates = ('conv_3x3', 'sep_conv_3x3', 'skip', 'zero')
  h.layers, h.nodes, h.width, h.stem_width = 2, 2, 2, 4
  c.data.crop, c.data.eval_crop, c.data.num_validation = 24, 48, 2
  c.data.blurs_per_photo, c.data.kernel_size = 1, 7
  c.search.schemes, c.search.num_trials = ('1-2',), 1
  c.search.warmup_steps, c.search.num_steps = 2, 4
  c.search.batch_size = c.train.batch_size = 4
  c.search.eval_every = 2
  c.search.score_steps = 2
  c.train.num_steps, c.train.decay_every = 4, 2
  c.train.eval_every = 2
  if c.train.optimizer == 'muon':  # Takes seconds to compile.
    c.train.optimizer = 'adam'
  c.benchmark.height, c.benchmark.width, c.benchmark.runs = 48, 64, 3
  return c


def variant(arg: str, variants: Mapping[str, Any]) -> Any:
  """Returns the value named by a config file's `:variant`.

  Args:
    arg: Text after the colon of `--config=file.py:variant`, or ''.
    variants: Name -> value; '' names the default.

  Raises:
    SettingError: Names the nearest variant.
  """
  if arg not in variants:
    names = sorted(name for name in variants if name)
    raise SettingError(
      f'config variant is {arg!r}; expected one of {", ".join(names)}.'
      + genotype_lib.nearest(arg, names)
    )
  return variants[arg]


def _kind(value: Any) -> str:
  if isinstance(value, bool):
    return 'true or false'
  if isinstance(value, numbers.Integral):
    return 'a whole number'
  if isinstance(value, numbers.Real):
    return 'a number'
  if isinstance(value, tuple):
    return 'a tuple'
  return 'text' if isinstance(value, str) else type(value).__name__


def override(
  c: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Sets settings from `{'train.num_steps': 10}` or `{'train': {...}}`.

  Raises:
    SettingError: Names an unknown setting and the nearest right one, or a
      value of the wrong type.
  """
  leaves = flatten(c)
  for name, value in values.items():
    if isinstance(value, Mapping):
      override(c, {f'{name}.{key}': v for key, v in value.items()})
      continue
    if name not in leaves:
      raise SettingError(
        f'{name!r} is not a setting.' + genotype_lib.nearest(name, list(leaves))
      )
    old = leaves[name]
    if isinstance(value, list):
      value = tuple(value)
    if _kind(old) == 'a number' and _kind(value) == 'a whole number':
      value = float(value)
    if _kind(old) != _kind(value):
      raise SettingError(f'{name} is {value!r}; expected {_kind(old)}.')
    group, _, leaf = name.rpartition('.')
    # The old type, as NumPy's numbers are welcome but no JSON.
    setattr(c[group] if group else c, leaf, type(old)(value))
  return c


def flatten(c: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns `{'train.lr': 1e-3, ...}`, in the order of declaration."""
  leaves = collections.OrderedDict()
  for name in c:
    value = c[name]
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
      leaves.update(flatten(value, f'{prefix}{name}.'))
    else:
      leaves[prefix + name] = value
  return leaves


def require(condition: bool, name: str, value: Any, expected: str) -> None:
  """Raises a SettingError that names a setting, unless the condition holds."""
  if not condition:
    raise SettingError(f'{name} is {value!r}; expected {expected}.')


def refuse(c: ml_collections.ConfigDict, *names: str, reason: str) -> None:
  """Raises a SettingError if one of the settings, texts, is not ''."""
  for name in names:
    value = flatten(c)[name]
    require(not value, name, value, f"'', as {reason}")


def validate(c: ml_collections.ConfigDict) -> None:
  """Checks every setting before any work.

  Raises:
    SettingError: Names the first bad setting, its value and what was expected.
  """
  leaves = flatten(c)
  known = flatten(base())
  for name in [*leaves, *known]:
    if name not in known:
      raise SettingError(
        f'{name!r} is not a setting.' + genotype_lib.nearest(name, list(known))
      )
    if name not in leaves:
      raise SettingError(f'{name} is missing; start from config.base().')
  for name, names in CHOICES.items():
    require(
      leaves[name] in names, name, leaves[name],
      f'one of {", ".join(names)}' + genotype_lib.nearest(leaves[name], names),
    )  # fmt: skip
  for name in POSITIVE:
    value = leaves[name]
    require(0 < value < math.inf, name, value, 'a number above 0')
  for name in (
    'search.warmup_steps', 'search.clip_norm', 'train.clip_norm',
    'data.noise_sigma', 'data.num_threads', 'data.shot_noise',
    'search.max_hours', 'search.weight_lr_end', 'search.weight_decay',
    'search.alpha_decay', 'search.first_score', 'data.eval_patch',
    'search.cost_weight', 'search.max_latency_ms',
    'search.max_params', 'search.max_gmacs', 'search.psnr_slack',
    'search.refine_passes', 'search.local_trials',
  ):  # fmt: skip
    require(0 <= leaves[name] < math.inf, name, leaves[name], '0 or more')
  require(0 <= c.seed < 2**32, 'seed', c.seed, '0 to 4294967295')
  for name in ('search.collapse_fraction', 'train.decay_rate'):
    require(0 < leaves[name] <= 1, name, leaves[name], 'above 0, at most 1')
  for name in (
    'train.ema_decay', 'search.momentum', 'data.validation_fraction',
    'data.saturation_jitter', 'data.alpha_fraction',
  ):  # fmt: skip
    require(0 <= leaves[name] < 1, name, leaves[name], '0 or more, below 1')
  sigma = c.data.noise_sigma
  require(sigma <= MAX_SIGMA, 'data.noise_sigma', sigma, f'at most {MAX_SIGMA}')
  varying = c.data.varying
  require(0 <= varying <= 1, 'data.varying', varying, '0 to 1')
  warmup, num_steps = c.search.warmup_steps, c.search.num_steps
  require(warmup <= num_steps, 'search.warmup_steps', warmup,
          f'at most search.num_steps, {num_steps}')  # fmt: skip
  size = c.data.kernel_size
  odd = size > 0 and size % 2 == 1
  require(odd, 'data.kernel_size', size, 'an odd number')
  for i, text in enumerate(c.search.schemes):
    try:
      genotype_lib.parse_scheme(text)
    except genotype_lib.GenotypeError as error:
      raise SettingError(f'search.schemes[{i}]: {error}') from None
  for name, expected in (
    ('unshuffles', 'factors out of 1, 2 and 4'),
    ('base_widths', f'channels, 1 to {genotype_lib.MAX_WIDTH}'),
  ):
    values = c.search[name]
    known = (1, 2, 4) if name == 'unshuffles' else range(
      1, genotype_lib.MAX_WIDTH + 1
    )
    require(
      all(type(value) is int and value in known for value in values),
      f'search.{name}', values, expected,
    )  # fmt: skip
  if c.data.name == 'folder':
    require(bool(c.data.root), 'data.root', c.data.root, 'a folder of images')
    subsets = (
      '', 'blur', 'blur_gamma', 'blurred', 'blurry', 'input', 'input_crops',
      'lq', 'noisy',
    )  # fmt: skip
    require(
      c.data.subset in subsets, 'data.subset', c.data.subset,
      f'one of {", ".join(map(repr, subsets))}',
    )  # fmt: skip
  require(
    not c.model.joint or c.model.share == 'none', 'model.joint', True,
    f"false, as model.share {c.model.share!r} has one stage; or 'none' there",
  )  # fmt: skip
  require(
    c.benchmark.dtype != 'int8' or c.mode == 'benchmark', 'benchmark.dtype',
    'int8', 'float32 or bfloat16, as XLA times runs and has no int8',
  )  # fmt: skip
  if c.data.tiles:
    require(
      c.data.name not in ('photos', 'folder'), 'data.tiles', True,
      f'false, as data.name {c.data.name!r} is not a prepared dataset',
    )  # fmt: skip
  gain, quality = c.data.highlight_gain, c.data.jpeg_quality
  require(gain >= 1, 'data.highlight_gain', gain, '1 or more')
  whole = all(type(q) is int for q in quality)
  require(
    not quality or (len(quality) == 2 and whole
                    and 1 <= quality[0] <= quality[1] <= 100),
    'data.jpeg_quality', quality, '() or (lowest, highest) within 1 and 100',
  )  # fmt: skip
  _validate_task(c)
  # A probe genotype checks every setting of the model that it shares.
  candidates = c.model.candidates
  for group in ('model', 'hinas'):
    names = c[group].candidates
    require(
      len(set(map(str, names))) == len(names) > 0, f'{group}.candidates', names,
      'operators, none twice',
    )  # fmt: skip
  local = c.search.local_trials
  require(
    not (local and c.train.inherit), 'search.local_trials', local,
    '0 with train.inherit, as there are no weights to inherit',
  )  # fmt: skip
  try:
    for operator in candidates:
      num_cells = len(c.model.widths) * c.model.cells_per_stage
      cells = (operator,) * num_cells
      genotype_lib.PyramidGenotype(
        scales=(genotype_lib.ScaleGenotype(1, cells, cells),),
        widths=tuple(c.model.widths),
        cells_per_stage=c.model.cells_per_stage,
        unshuffle=c.model.unshuffle,
      )
  except genotype_lib.GenotypeError as error:
    raise SettingError(f'model: {error}') from None
  widths = c.model.widths
  largest = genotype_lib.MAX_WIDTH * widths[0] // max(widths)
  require(
    all(width <= largest for width in c.search.base_widths),
    'search.base_widths', c.search.base_widths,
    f'{largest} or less, as model.widths grow to {max(widths)} / {widths[0]}',
  )  # fmt: skip
  require(
    c.search.estimator != 'two_path' or len(set(c.model.candidates)) > 1,
    'model.candidates', c.model.candidates, "2 or more for 'two_path'",
  )  # fmt: skip
  h = c.hinas
  require(
    len(set(h.candidates)) >= 3, 'hinas.candidates', h.candidates,
    'at least 3 operators',
  )  # fmt: skip
  try:
    for operator in h.candidates:
      node = ((0, operator), (1, operator))
      genotype_lib.HinasGenotype(
        cells=((node,) * h.nodes,) * h.layers,
        levels=(0,) * h.layers,
        width=h.width,
        width_factors=tuple(h.width_factors),
        stem_width=h.stem_width,
        sep_repeats=h.sep_repeats,
      )
  except genotype_lib.GenotypeError as error:
    raise SettingError(f'hinas: {error}') from None


def _validate_task(c: ml_collections.ConfigDict) -> None:
  """Checks the settings that only some tasks and spaces can have together."""
  if c.task == 'super_resolution':
    require(
      c.space == 'hinas', 'space', c.space,
      "'hinas' for super_resolution, as the output of others is no larger",
    )  # fmt: skip
    scale = c.data.scale
    require(scale in (2, 3, 4), 'data.scale', scale, '2, 3 or 4')
    for name in ('crop', 'eval_crop', 'eval_patch'):
      size = c.data[name]
      expected = f'a multiple of data.scale, {scale}'
      require(size % scale == 0, f'data.{name}', size, expected)
  if c.task == 'jpeg':
    quality = c.data.jpeg_quality
    require(bool(quality), 'data.jpeg_quality', quality, 'such as (10, 40)')
  if c.space == 'hinas':
    for name in ('base_widths', 'unshuffles'):
      value = c.search[name]
      require(not value, f'search.{name}', value, "() for the space 'hinas'")
    require(
      c.search.cost == 'none', 'search.cost', c.search.cost,
      "'none' for the space 'hinas', whose choices have no costs",
    )  # fmt: skip
    require(
      c.search.refine_passes == 0, 'search.refine_passes',
      c.search.refine_passes,
      "0 for the space 'hinas', where an edge may also be left out",
    )  # fmt: skip
    local = c.search.local_trials
    require(
      local == 0, 'search.local_trials', local, "0 for the space 'hinas'"
    )


def describe_task(c: ml_collections.ConfigDict) -> str:
  """Returns what networks are to do, in a few words.

  >>> describe_task(hinas('super_resolution', scale=2))
  'super-resolution x2'
  >>> describe_task(hinas('denoise', sigma=30.0))
  'denoising, sigma 30, grey'
  """
  text, d = TASKS[c.task], c.data
  if c.task == 'super_resolution':
    text += f' x{d.scale}'
  if c.task == 'denoise' and d.noise_sigma > 1:  # Pairs have their own noise.
    text += f', sigma {d.noise_sigma:g}'
    text += '' if d.noise_clip else ', unclipped'
  if c.task == 'jpeg':
    text += f', quality {" to ".join(map(str, d.jpeg_quality))}'
  return text + (', grey' if d.grey else '')


def to_json(c: ml_collections.ConfigDict) -> str:
  """Returns the settings as readable JSON."""
  return c.to_json(indent=2) + '\n'
