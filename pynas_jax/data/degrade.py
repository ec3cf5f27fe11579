"""Degradations of sharp images, shared by all tasks: noise, JPEG, size, light.

Images are float32 [H, W, C] in [0, 1]. A function that draws takes its NumPy
generator first; what it draws follows from the generator's state alone, in any
process. A recipe makes the input of a task: `Recipe` is the camera of a real
photograph, from light to file; `Noise`, `Downscale` and `Jpeg` are what papers
on one of these do.
"""

from __future__ import annotations

import dataclasses
import io
from typing import ClassVar, Protocol, Self

import chex
import ml_collections
import numpy as np
from PIL import Image

from pynas_jax import resize
from pynas_jax.data import blur

WHITE = 0.98  # Of full scale: from here on, a pixel may hide more light.


def _check(image: np.ndarray) -> None:
  chex.assert_rank(image, 3)
  chex.assert_type(image, np.float32)


def gaussian_noise(
  rng: np.random.Generator,
  image: np.ndarray,
  *,
  sigma: float,
  quantize: bool = False,
) -> np.ndarray:
  """Adds white Gaussian noise.

  Args:
    rng: Source of randomness.
    image: f32[H, W, C] in [0, 1].
    sigma: Standard deviation, of 255; denoising papers use 15 to 70.
    quantize: Clip and round to 8 bits, as a file would; papers mostly do not.

  Returns:
    f32[H, W, C], which leaves [0, 1] unless quantized.
  """
  _check(image)
  noise = rng.standard_normal(image.shape, dtype=np.float32)
  noisy = image + np.float32(sigma / 255) * noise
  if quantize:
    noisy = np.rint(np.clip(noisy, 0, 1) * 255) / np.float32(255)
  return noisy.astype(np.float32)


def sensor_noise(
  rng: np.random.Generator, image: np.ndarray, *, gain: float
) -> np.ndarray:
  """Adds the noise of a sensor that counts photons.

  The variance of a pixel of value x is gain * x; `gaussian_noise` adds that of
  the read-out.

  Args:
    rng: Source of randomness.
    image: f32[H, W, C], linear light, 0 or more.
    gain: Value of one photon; 0 leaves the light as it is.

  Returns:
    f32[H, W, C], not clipped.

  Source: Foi et al., IEEE TIP 17(10), 2008 (the Poisson-Gaussian model).
  """
  _check(image)
  if gain > 0:
    image = (rng.poisson(image / gain) * gain).astype(np.float32)
  return image


def jpeg(image: np.ndarray, *, quality: int) -> np.ndarray:
  """Returns the image as it comes back from a JPEG file.

  Args:
    image: f32[H, W, 1 or 3] in [0, 1]; rounded to 8 bits first.
    quality: 1 to 100, as libjpeg counts.

  Returns:
    f32[H, W, 1 or 3] in [0, 1].
  """
  _check(image)
  pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
  file = io.BytesIO()
  if pixels.shape[2] == 1:
    pixels = pixels[..., 0]
  Image.fromarray(pixels).save(file, 'JPEG', quality=quality)
  with Image.open(file) as decoded:
    pixels = np.array(decoded).reshape(image.shape)
  return pixels.astype(np.float32) / 255


def imresize(image: np.ndarray, *, scale: float) -> np.ndarray:
  """Resizes an image as MATLAB's `imresize` does: bicubic and antialiased.

  >>> image = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
  >>> [round(float(x), 3) for x in imresize(image, scale=0.75)[0, :, 0]]
  [0.751, 2.1, 3.45]

  Args:
    image: f32[H, W, C].
    scale: Factor of both sides, above 0; 0.25 makes the input of x4
      super-resolution.

  Returns:
    f32[ceil(H * scale), ceil(W * scale), C], neither clipped nor rounded.
  """
  _check(image)
  rows, columns = (
    resize.bicubic_weights(size, scale) for size in image.shape[:2]
  )
  tall = np.tensordot(rows, image.astype(np.float64), axes=(1, 0))
  resized = np.tensordot(columns, tall, axes=(1, 1)).swapaxes(0, 1)
  return resized.astype(np.float32)


def expand_highlights(image: np.ndarray, *, gain: float) -> np.ndarray:
  """Gives white pixels back the light that the sensor cut off.

  A lamp that moves over a saturating sensor leaves a white streak, which no
  blur of the clipped picture shows; clip after the blur.

  Args:
    image: f32[H, W, C] in [0, 1].
    gain: Factor of the pixels whose brightest channel is white; 1 or more.

  Returns:
    f32[H, W, C] in [0, gain].
  """
  _check(image)
  white = image.max(axis=2, keepdims=True) >= WHITE
  return np.where(white, np.float32(gain) * image, image)


class AnyRecipe(Protocol):
  """What makes a task's input of a sharp image.

  Attributes:
    scale: Factor by which the input is smaller.
    margin: Pixels to cut off a sharp crop, both sides together, so that
      neither is at a border.
    in_file: Whether 8 bits hold the input, which is then in [0, 1].
  """

  scale: int
  margin: int
  in_file: bool

  def degrade(
    self, rng: np.random.Generator, sharp: np.ndarray
  ) -> np.ndarray:
    """Returns f32[H / scale, W / scale, C] of f32[H, W, C] in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class Noise:
  """White Gaussian noise.

  Attributes:
    sigma: Standard deviation, of 255.
    grey: Whether all channels get the same noise.
    in_file: Whether it is clipped and rounded to 8 bits, as a file is.
  """

  sigma: float
  grey: bool = False
  in_file: bool = True
  scale: ClassVar[int] = 1
  margin: ClassVar[int] = 0

  def degrade(
    self, rng: np.random.Generator, sharp: np.ndarray
  ) -> np.ndarray:
    """Adds noise to f32[H, W, C] in [0, 1]; returns the same type."""
    image = sharp[..., :1] if self.grey else sharp
    noisy = gaussian_noise(
      rng, image, sigma=self.sigma, quantize=self.in_file
    )
    return np.broadcast_to(noisy, sharp.shape)


@dataclasses.dataclass(frozen=True)
class Downscale:
  """Bicubic downsizing as MATLAB's, rounded to 8 bits as a file is.

  Attributes:
    scale: Factor of both sides.
  """

  scale: int
  in_file: ClassVar[bool] = True

  @property
  def margin(self) -> int:
    """As `AnyRecipe`: two pixels of the small image on each side."""
    return 4 * self.scale

  def degrade(
    self, rng: np.random.Generator, sharp: np.ndarray
  ) -> np.ndarray:
    """Returns f32[H / scale, W / scale, C] of f32[H, W, C] in [0, 1]."""
    del rng
    small = imresize(sharp, scale=1 / self.scale)
    return np.rint(np.clip(small, 0, 1) * 255) / np.float32(255)


@dataclasses.dataclass(frozen=True)
class Jpeg:
  """A JPEG file.

  Attributes:
    quality: Lowest and highest, drawn evenly.
  """

  quality: tuple[int, int]
  scale: ClassVar[int] = 1
  margin: ClassVar[int] = 0
  in_file: ClassVar[bool] = True

  def degrade(
    self, rng: np.random.Generator, sharp: np.ndarray
  ) -> np.ndarray:
    """Compresses f32[H, W, 1 or 3] in [0, 1]; returns the same type."""
    return jpeg(sharp, quality=int(rng.integers(*self.quality, endpoint=True)))


def make_recipe(data: ml_collections.ConfigDict, task: str) -> AnyRecipe:
  """Returns what makes the input of a task.

  Args:
    data: The settings `config.data`.
    task: The setting `config.task`.
  """
  if task == 'denoise':
    return Noise(data.noise_sigma, data.grey, data.noise_clip)
  if task == 'super_resolution':
    return Downscale(data.scale)
  if task == 'jpeg':
    return Jpeg(tuple(data.jpeg_quality))
  return Recipe.from_settings(data)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A shaken camera: light, blur, saturation, noise, file.

  Attributes:
    kernel_size: Side of the random-walk kernel, pixels, odd; 1 is no blur.
    kernel_steps: Steps of the walk.
    noise_sigma: Gaussian noise of the picture, of 255.
    light_gamma: Blur and shot noise act on the image to this power; 1 acts on
      the stored values, as Miao and Zhu do, 2.2 on linear light.
    highlight_gain: White pixels hold up to this much light, drawn evenly; 1 is
      off.
    shot_noise: `gain` of `sensor_noise`; 0 is off.
    jpeg_quality: Lowest and highest quality, drawn evenly; () is no JPEG.
    varying: Part of the pictures whose blur varies over the frame.
  """

  kernel_size: int
  kernel_steps: int
  noise_sigma: float
  light_gamma: float = 1.0
  highlight_gain: float = 1.0
  shot_noise: float = 0.0
  jpeg_quality: tuple[int, ...] = ()
  varying: float = 0.0
  scale: ClassVar[int] = 1
  in_file: ClassVar[bool] = True

  @classmethod
  def from_settings(cls, data: ml_collections.ConfigDict) -> Self:
    """Returns the recipe of the settings `config.data`."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: data[name] for name in names})

  @property
  def margin(self) -> int:
    """Pixels to cut off a crop, both sides together, to be free of borders."""
    return self.kernel_size - 1

  def _draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
    return blur.random_walk_kernel(
      rng, size=self.kernel_size, steps=self.kernel_steps
    )

  def degrade(self, rng: np.random.Generator, sharp: np.ndarray) -> np.ndarray:
    """Takes the picture.

    Args:
      rng: Source of randomness.
      sharp: f32[H, W, C] in [0, 1].

    Returns:
      f32[H, W, C] in [0, 1].

    Source: Miao and Zhu, 2021, for the blur; light and file are ours.
    """
    _check(sharp)
    kernel = self._draw_kernel(rng)
    light = sharp
    if self.light_gamma != 1:
      light = light ** np.float32(self.light_gamma)
    if self.highlight_gain > 1:
      gain = rng.uniform(1, self.highlight_gain)
      light = expand_highlights(light, gain=gain)
    still = light
    light = blur.apply_kernel(still, kernel)
    if self.varying and rng.random() < self.varying:
      height, width = sharp.shape[:2]
      ramp = blur.random_ramp(rng, height=height, width=width)
      other = blur.apply_kernel(still, self._draw_kernel(rng))
      light = ramp * light + (1 - ramp) * other
    if self.shot_noise > 0:
      light = sensor_noise(rng, light, gain=self.shot_noise)
    picture = light
    if self.light_gamma != 1:
      picture = np.clip(light, 0, None) ** np.float32(1 / self.light_gamma)
    picture = gaussian_noise(rng, picture, sigma=self.noise_sigma)
    picture = np.clip(picture, 0, 1, out=picture)
    if self.jpeg_quality:
      low, high = self.jpeg_quality
      quality = int(rng.integers(low, high, endpoint=True))
      picture = jpeg(picture, quality=quality)
    return picture
