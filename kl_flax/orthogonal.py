"""Samplers of the standard normal distribution: independent, orthogonal, structured frequencies.

With these frequencies features estimate the Gaussian kernel (`positive_features`,
`fourier_features`) or the softmax kernel (`softmax_features`), nothing of which is learned.

Each takes two options. Antithetic frequencies come in pairs ±omega, the second half mirroring the
first: positive features gain, Fourier features lose, as both of a pair are one feature. Stretched
frequencies (`typical_norm`) are those of `kl_flax.spectral.widen`, with weights.

Shapes: h heads, n blocks, d head size, m frequencies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from kl_flax.hadamard import check_head_dim, hadamard_rows, walsh_hadamard
from kl_flax.spectral import (
  Distribution,
  Frequencies,
  check_pairs,
  draw_normal,
  standard_normal,
  widen,
)


def orthogonal_frequencies(
  noise: Float[Array, 'h n d d'], lengths: Float[Array, 'h m']
) -> Float[Array, 'h m d']:
  """Return frequencies whose directions are orthogonal within each block of D (Yu et al. 2016).

  Args:
    noise: draws of N(0, 1), from which `random_rotation` makes each block.
    lengths: of the frequencies, at most n·D of them; the last block is cut to what is needed.
      Draws of χ_D make every frequency N(0, I) by itself (Choromanski et al. 2021), hence
      estimates of kernels unbiased; orthogonality lowers their variance.

  Returns:
    omega, float32; the first D rows belong to block 0.
  """
  num_heads, _, head_dim, _ = noise.shape
  rotation = random_rotation(noise)
  directions = rotation.reshape(num_heads, -1, head_dim)[:, : lengths.shape[1]]
  return lengths[..., None] * directions


def random_rotation(noise: Float[Array, '*n d d']) -> Float[Array, '*n d d']:
  """Return orthogonal matrices, uniformly (Haar) distributed, from draws of N(0, 1).

  They are the Q of a QR decomposition whose R has a positive diagonal, but of no matrix in
  particular: the reflections that would make it are drawn (Stewart 1980). The i-th one takes x,
  what column i of the noise has on and below the diagonal, to the axis. With v = x ± |x| e_i,
  scaled to |v|² = 2, their product is I − V S⁻¹ V', where S is the upper triangle of V'V
  (Puglisi 1992): three products of whole batches. A GPU's QR takes one reflection after another,
  matrix by matrix: 16 of 64 x 64 take longer than the attention that needs them.
  """
  size = noise.shape[-1]
  below, diagonal = jnp.tril(noise), jnp.diagonal(noise, axis1=-2, axis2=-1)
  sign = jnp.where(diagonal < 0, -1.0, 1.0)
  # A draw of 0 in the last column would have no direction.
  length = jnp.maximum(jnp.linalg.norm(below, axis=-2), 1e-6)
  vectors = below + (sign * length)[..., None, :] * jnp.eye(size)
  vectors *= 2**0.5 / jnp.linalg.norm(vectors, axis=-2, keepdims=True)
  # Not in TensorFloat-32: it would leave directions orthogonal to three digits only.
  product = functools.partial(jnp.matmul, precision='highest')
  transposed = jnp.swapaxes(vectors, -1, -2)
  solved = solve_triangular(product(transposed, vectors), transposed, unit_diagonal=True)
  return (jnp.eye(size) - product(vectors, solved)) * -sign[..., None, :]


def structured_frequencies(diagonals: Float[Array, 'h n 3 d']) -> Float[Array, 'h n*d d']:
  """Return √D (H D_3 / √D) (H D_2 / √D) (H D_1 / √D), block under block (SORF, Yu et al. 2016).

  H is the Walsh–Hadamard matrix. With signs as diagonals, each block is √D times a rotation:
  frequencies are orthogonal and all of length √D, which χ_D is near to.

  Args:
    diagonals: D_1, D_2, D_3 of every block.

  Returns:
    omega, float32; the first D rows belong to block 0.

  Raises:
    ValueError: if D is no power of two.

  >>> import jax.numpy as jnp
  >>> structured_frequencies(jnp.ones((1, 1, 3, 4))).tolist()[0][1]  # H H H / 4 = H
  [1.0, -1.0, 1.0, -1.0]
  """
  num_heads, _, _, head_dim = diagonals.shape
  check_head_dim(head_dim, 'StructuredOrthogonal')
  first, second, third = (diagonals[:, :, i] for i in range(3))
  # H D_1 needs no transform: the rows of H are known. Its columns are multiplied last.
  columns = second[..., None] * hadamard_rows(jnp.arange(head_dim), head_dim)
  columns = third[..., None] * walsh_hadamard(columns, axis=-2)
  omega = walsh_hadamard(columns, axis=-2) * (first / head_dim)[..., None, :]
  return omega.reshape(num_heads, -1, head_dim)


class Gaussian(nn.Module):
  """Independent draws of N(0, I), from the PRNG stream 'spectral'; there are no parameters.

  Attributes:
    num_frequencies: M, at least 1.
    antithetic: whether frequencies come in pairs ±omega; M must then be even.
    typical_norm: |q + k|², at the temperature, that stretched draws are tuned to; 0 leaves the
      draws as they are. See `kl_flax.spectral.widen`.

  Raises:
    ValueError: for an impossible combination.
  """

  num_frequencies: int
  antithetic: bool = False
  typical_norm: float = 0.0

  def __post_init__(self) -> None:
    """Check the combination at once."""
    super().__post_init__()
    _check(self)

  @nn.compact
  def __call__(self, num_heads: int, head_dim: int) -> Float[Array, 'h m d'] | Frequencies:
    """Return omega, float32, for H and D; with weights if stretched."""
    shape = (num_heads, self.num_frequencies, head_dim)
    noise = draw_normal(self.make_rng('spectral'), shape, antithetic=self.antithetic)
    return _stretched(noise, self.typical_norm)

  def distribution(self, params: Mapping[str, Any], head: int, head_dim: int) -> Distribution:
    """Return what the frequencies of one head are, each by itself."""
    del params, head
    return standard_normal(
      head_dim,
      num_noise=self.num_frequencies,
      antithetic=self.antithetic,
      typical_norm=self.typical_norm,
    )


class OrthogonalGaussian(nn.Module):
  """Frequencies orthogonal in blocks of D, lengths drawn from χ_D: Performer's.

  Every frequency is N(0, I) by itself, from the PRNG stream 'spectral'; there are no parameters
  (Yu et al. 2016; Choromanski et al. 2021). If D does not divide M, or M/2 for antithetic pairs,
  the last block is cut.

  Attributes:
    num_frequencies: M, at least 1.
    antithetic: whether frequencies come in pairs ±omega; M must then be even.
    typical_norm: see `Gaussian`.

  Raises:
    ValueError: for an impossible combination.
  """

  num_frequencies: int
  antithetic: bool = False
  typical_norm: float = 0.0

  def __post_init__(self) -> None:
    """Check the combination at once."""
    super().__post_init__()
    _check(self)

  @nn.compact
  def __call__(self, num_heads: int, head_dim: int) -> Float[Array, 'h m d'] | Frequencies:
    """Return omega, float32, for H and D; with weights if stretched."""
    count, num_blocks = _count(self, head_dim)
    key_directions, key_lengths = jax.random.split(self.make_rng('spectral'))
    noise = jax.random.normal(key_directions, (num_heads, num_blocks, head_dim, head_dim))
    lengths = draw_lengths(key_lengths, (num_heads, count), head_dim)
    omega = orthogonal_frequencies(noise, lengths)
    return _stretched(_paired(omega, self.antithetic), self.typical_norm)

  def distribution(self, params: Mapping[str, Any], head: int, head_dim: int) -> Distribution:
    """Return what the frequencies of one head are, each by itself."""
    del params, head
    return standard_normal(head_dim)


class StructuredOrthogonal(nn.Module):
  """Structured orthogonal frequencies (SORF, Yu et al. 2016): three rotations H D_i / √D a block.

  The signs D_i are drawn from the PRNG stream 'spectral'. If learned, the diagonals are parameters
  that start as signs, and nothing is drawn: no stream is needed, the kernel is the same in every
  call.

  Signs make frequencies only near normal: lengths are √D instead of χ_D, and directions come from a
  finite set. Estimates of kernels are therefore biased, by about −r⁴/(4D) of the kernel, where r is
  |q − k| for Fourier features and |q + k| for positive ones. (For r² small beside D; this is the
  leading term of the expectation. Measured for D = 64: −0.4 % at r = 1, −6 % at r = 2.)

  If D does not divide M, or M/2 for antithetic pairs, the last block is cut.

  Attributes:
    num_frequencies: M, at least 1.
    antithetic: whether frequencies come in pairs ±omega; M must then be even.
    typical_norm: must be 0: frequencies of one length cannot be stretched without a bias.
    learned: whether the diagonals are parameters.

  Raises:
    ValueError: for an impossible combination; when called, if D is no power of two.
  """

  num_frequencies: int
  antithetic: bool = False
  typical_norm: float = 0.0
  learned: bool = False

  def __post_init__(self) -> None:
    """Check the combination at once."""
    super().__post_init__()
    _check(self)
    if self.typical_norm:
      raise ValueError(
        f'typical_norm={self.typical_norm} needs frequencies of normally distributed lengths, '
        "StructuredOrthogonal's are all √D: set typical_norm=0 or take OrthogonalGaussian"
      )

  @nn.compact
  def __call__(self, num_heads: int, head_dim: int) -> Float[Array, 'h m d']:
    """Return omega, float32, for H and D."""
    check_head_dim(head_dim, 'StructuredOrthogonal')
    count, num_blocks = _count(self, head_dim)
    shape = (num_heads, num_blocks, 3, head_dim)
    if self.learned:
      diagonals = self.param('diagonals', draw_signs, shape)
    else:
      diagonals = draw_signs(self.make_rng('spectral'), shape)
    return _paired(structured_frequencies(diagonals)[:, :count], self.antithetic)

  def distribution(
    self, params: Mapping[str, Any], head: int, head_dim: int
  ) -> Distribution | None:
    """Return what the frequencies of one head are near, each by itself; None if learned."""
    del params, head
    return None if self.learned else standard_normal(head_dim)


def draw_signs(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, '...']:
  """Return −1 or 1 with equal probability, float32."""
  return jax.random.rademacher(key, shape, jnp.float32)


def draw_lengths(key: PRNGKeyArray, shape: tuple[int, ...], head_dim: int) -> Float[Array, '...']:
  """Return draws of χ_D, the length of a normal vector in D dimensions, float32.

  They are just that: a sampler of the gamma distribution rejects in a loop, which costs a GPU more
  than D normal draws.
  """
  return jnp.linalg.norm(jax.random.normal(key, (*shape, head_dim)), axis=-1)


def _check(sampler) -> None:
  """Raise a ValueError for options of a sampler that contradict each other."""
  if sampler.num_frequencies < 1:
    raise ValueError(f'num_frequencies must be at least 1, got {sampler.num_frequencies}')
  if sampler.typical_norm < 0:
    raise ValueError(f'typical_norm must be at least 0, got {sampler.typical_norm}')
  check_pairs(sampler.num_frequencies, sampler.antithetic, 'of the sampler')


def _count(sampler, head_dim):
  """Return how many frequencies are drawn before pairing, and how many blocks hold them."""
  count = sampler.num_frequencies // (2 if sampler.antithetic else 1)
  return count, math.ceil(count / head_dim)


def _paired(omega, antithetic):
  return jnp.concatenate([omega, -omega], axis=1) if antithetic else omega


def _stretched(omega, typical_norm):
  return Frequencies(*widen(omega, typical_norm)) if typical_norm else omega
