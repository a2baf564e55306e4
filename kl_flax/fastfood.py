"""FastFood: frequencies as a product of diagonal and Hadamard matrices.

Shapes: b batch, l length, h heads, n blocks, d head size; all blocks have n·d = M frequencies.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kl_flax.hadamard import check_head_dim, hadamard_rows, walsh_hadamard
from kl_flax.orthogonal import draw_lengths, draw_signs
from kl_flax.spectral import Distribution, standard_normal

Learned = Literal['none', 's', 'sgb']
Initial = Literal['le', 'authors']


def fastfood_frequencies(
  B: Float[Array, 'h n d'],
  G: Float[Array, 'h n d'],
  S: Float[Array, 'h n d'],
  permutation: Int[Array, 'h n d'],
) -> Float[Array, 'h n*d d']:
  """Return V = S H G Π H B / √D, eqs. 6 and 12 with σ = 1 (Le et al. 2013), block under block.

  H is the Walsh–Hadamard matrix; S, G and B are diagonals. H Π H B needs no transform, since the
  rows of H are known: one transform of D columns a block remains.

  Args:
    B: signs, or what learning made of them.
    G: draws of N(0, 1), likewise.
    S: D lengths of the rows; for B = ±1 row i of a block has length |S_i| times the norm of the
      block's G.
    permutation: Π as indices, (Π x)_i = x[permutation_i]; each row holds 0 ... D − 1 once.

  Returns:
    omega, float32; the first D rows belong to block 0.

  Raises:
    ValueError: if D is no power of two.

  >>> import jax.numpy as jnp
  >>> B, G, S = jnp.ones((1, 1, 2)), jnp.array([[[1., 0.]]]), jnp.full((1, 1, 2), 2**0.5)
  >>> omega = fastfood_frequencies(B, G, S, jnp.array([[[1, 0]]]))  # H diag(1, 0) Π H
  >>> omega.round(3).tolist()
  [[[1.0, -1.0], [1.0, -1.0]]]
  """
  num_heads, _, head_dim = B.shape
  check_head_dim(head_dim, 'FastFood')
  columns = G[..., None] * hadamard_rows(permutation, head_dim)
  columns = walsh_hadamard(columns, axis=-2)
  omega = S[..., None] * columns * (B * head_dim**-0.5)[..., None, :]
  return omega.astype(jnp.float32).reshape(num_heads, -1, head_dim)


def fastfood_project(
  x: Float[Array, 'b l h d'],
  B: Float[Array, 'h n d'],
  G: Float[Array, 'h n d'],
  S: Float[Array, 'h n d'],
  permutation: Int[Array, 'h n d'],
) -> Float[Array, 'b l h n*d']:
  """Return V x for every head, by transforming x: O(M log D) a vector instead of O(M D).

  It equals `kl_flax.features.project(x, fastfood_frequencies(...))`, which is the faster way
  on an H200 at every D up to 2,048: a dense product makes better use of the hardware.

  Args:
    x: any float dtype.
    B: see `fastfood_frequencies`, as the other arguments.
    G: likewise.
    S: likewise.
    permutation: likewise.

  Returns:
    float32; all steps are taken in float32.

  Raises:
    ValueError: if D is no power of two.
  """
  head_dim = x.shape[-1]
  check_head_dim(head_dim, 'FastFood')
  y = walsh_hadamard(x.astype(jnp.float32)[..., None, :] * B)
  y = _permute(y, permutation)
  y = walsh_hadamard(y * G) * (S * head_dim**-0.5)
  return y.reshape(*x.shape[:-1], -1)


class FastFood(nn.Module):
  """FastFood frequencies (FASTFOOD-RKS and FASTFOOD-PRF), eqs. 6 and 12, appendix D.1.

  What is not learned is drawn anew from the stream 'spectral', the permutation always. As Le et
  al. (2013) draw them, B = ±1, G ~ N(0, 1) and S_i = χ_D / |G| make every frequency N(0, I) by
  itself, those of one block depending on each other.

  With learned='s' the parameter S holds lengths, which start as draws of χ_D and are divided by
  the norm of whatever G is drawn: if they were divided once and for all by the norm of the first
  draw, lengths would be off for every later one.

  Attributes:
    num_frequencies: M, a multiple of the head size D, which is a power of two. (The paper's
      "M | d" has it the other way round; its experiments have M = D.)
    learned: 'none', 's' (S alone) or 'sgb' (S, G and B, the paper's main variant).
    initial: 'le', or 'authors' for N(0, 1/D) in place of all three, learned or drawn, as in the
      released code. S is then taken as it is, and frequencies have variance D^(−3) in place of 1:
      the kernel starts all but constant.

  Raises:
    ValueError: for an unknown option; when called, for a head size that does not fit.
  """

  num_frequencies: int
  learned: Learned = 'sgb'
  initial: Initial = 'le'

  def __post_init__(self) -> None:
    """Check at once what can be checked without the head size."""
    super().__post_init__()
    for field, known in (('learned', Learned), ('initial', Initial)):
      if getattr(self, field) not in get_args(known):
        raise ValueError(f'{field} must be one of {get_args(known)}, got {getattr(self, field)!r}')
    if self.num_frequencies < 1:
      raise ValueError(f'num_frequencies must be at least 1, got {self.num_frequencies}')

  @nn.compact
  def __call__(self, num_heads: int, head_dim: int) -> Float[Array, 'h m d']:
    """Return omega, float32, for H and D."""
    check_head_dim(head_dim, 'FastFood')
    if self.num_frequencies % head_dim:
      raise ValueError(
        f'num_frequencies={self.num_frequencies} must be a multiple of the head size {head_dim}: '
        'FastFood draws whole blocks'
      )
    shape = (num_heads, self.num_frequencies // head_dim, head_dim)
    key_b, key_g, key_s, key_permutation = jax.random.split(self.make_rng('spectral'), 4)

    def diagonal(name, key, draw):
      return self.param(name, draw, shape) if name.lower() in self.learned else draw(key, shape)

    if self.initial == 'authors':
      draw = nn.initializers.normal(head_dim**-0.5)
      B, G, S = (diagonal(*pair, draw) for pair in zip('BGS', (key_b, key_g, key_s), strict=True))
    else:
      B = diagonal('B', key_b, draw_signs)
      G = diagonal('G', key_g, jax.random.normal)
      norm = jnp.linalg.norm(G, axis=-1, keepdims=True)
      lengths = functools.partial(draw_lengths, head_dim=head_dim)
      if self.learned == 'sgb':
        S = diagonal('S', key_s, lambda key, shape: lengths(key, shape) / norm)
      else:
        S = diagonal('S', key_s, lengths) / norm
    permutation = jnp.broadcast_to(jnp.arange(head_dim), shape)
    permutation = jax.random.permutation(key_permutation, permutation, axis=-1, independent=True)
    return fastfood_frequencies(B, G, S, permutation)

  def distribution(
    self, params: Mapping[str, Any], head: int, head_dim: int
  ) -> Distribution | None:
    """Return what the frequencies of one head are, each by itself; None but as Le et al. draw."""
    del params, head
    as_drawn = self.learned == 'none' and self.initial == 'le'
    return standard_normal(head_dim) if as_drawn else None


def _permute(x, permutation):
  """Return x [b, l, h, n, d] with its last axis permuted, in each head and block differently."""

  def one_block(x, permutation):
    # As unique indices they can be scattered, in the gradient, without atomic additions.
    return x.at[..., permutation].get(unique_indices=True, mode='promise_in_bounds')

  one_head = jax.vmap(one_block, in_axes=(-2, 0), out_axes=-2)
  return jax.vmap(one_head, in_axes=(-3, 0), out_axes=-3)(x, permutation)
