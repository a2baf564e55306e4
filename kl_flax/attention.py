"""Attention through a kernel in O(L), and the module around it.

Because the kernel is an inner product of features, the sums over keys are taken once, for all
queries: O(L) time and memory (paper, below eq. 3). `kl_flax.sums` has the sums, `kl_flax.causal`
those over earlier keys alone, `kl_flax.naive` the twin through the L×L matrix.

Shapes: b batch, l queries, s keys, h heads, d head size, e value size, m frequencies.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kl_flax.causal import causal_sums
from kl_flax.checks import check_arrays
from kl_flax.features import FeatureMap
from kl_flax.kernels import Implementation, runs_fused
from kl_flax.numerics import divide
from kl_flax.spectral import as_weighted
from kl_flax.sums import attention_sums, denominator_floor, resolve_smoothing


def kernel_attention(
  query: Float[Array, 'b l h d'],
  key: Float[Array, 'b s h d'],
  value: Float[Array, 'b s h e'],
  omega: Float[Array, 'h m d'] | None = None,
  *,
  features: FeatureMap = 'positive',
  key_mask: Bool[Array, 'b s'] | None = None,
  smoothing: float | None = None,
  log_weight: Float[Array, 'h m'] | None = None,
  causal: bool = False,
  implementation: Implementation = 'auto',
) -> Float[Array, 'b l h e']:
  """Return kernel attention in O(L) time and memory.

  Queries and keys are divided by the temperature D^(1/4) each ('elu', which has none, excepted).

  Positive and softmax features are computed in log space. With exponents a_im of queries and b_jm
  of keys, the shift C_m = max_j b_jm is taken per frequency and moved to the query's side,
  exp(a_im + b_jm) = exp(a_im + C_m) · exp(b_jm − C_m), and the query's shift is
  max_m (a_im + C_m). Both cancel in the ratio, and at least one term of every denominator is
  exactly 1: nothing overflows, and no row can lose all of its keys to underflow, as happens with
  one maximum over all frequencies.

  Args:
    query: any float dtype. In bfloat16 features and the sums over keys are rounded to it between
      the two products; exponents, products and the ratio are float32.
    key: same dtype as the query.
    value: same dtype as the query; finite at masked positions too.
    omega: frequencies of the kernel; None for features='elu' and 'relu'.
    features: 'positive' (eq. 9), 'softmax' (Performer's), 'fourier' (eq. 3), 'elu' (elu(x) + 1) or
      'relu' (relu(x) + 0.001).
    key_mask: True where a key takes part; None means everywhere. A row without any valid key
      gives zeros.
    smoothing: c ≥ 0, a constant feature that adds c² to the kernel; None is 1 for Fourier features,
      whose outputs can be arbitrarily large for less, and 0 for the others. The authors' code uses
      it with Fourier features (the paper does not mention it): for c ≥ 1, and
      weights of at most 1, no denominator is negative.
    log_weight: log of the weight of each frequency, where they do not count equally: the kernel is
      the mean over frequencies of exp(log_weight) phi(q) phi(k).
    causal: whether query i sees the keys 0 ... i alone; needs as many keys as queries. See
      `kl_flax.causal`, which also decodes token by token.
    implementation: 'fused' computes features inside GPU kernels, forward and backward, and never
      writes them to memory (`kl_flax.kernels`); 'xla' is the reference; 'auto' takes the fused
      kernels if the default device can run them. `kl_flax.kernel_info` tells which it will be, and
      why. Of the fused kernels there are no derivatives in forward mode (`jax.jvp`) and no second
      ones: take 'xla' for these, and for arrays on another device than the default one.

  Returns:
    The attention output, in the query's dtype.

  Raises:
    ValueError: for inconsistent shapes, no key at all, arrays that are not floating or an unknown
      option; if 'fused' cannot run.

  >>> import jax, jax.numpy as jnp
  >>> q = k = jax.random.normal(jax.random.key(0), (1, 5, 2, 4))
  >>> omega = jax.random.normal(jax.random.key(1), (2, 8, 4))
  >>> out = kernel_attention(q, k, jnp.ones((1, 5, 2, 3)), omega)
  >>> out.shape, bool(jnp.allclose(out, 1.))  # Weights sum to one.
  ((1, 5, 2, 3), True)
  """
  out, _ = _attend(
    query,
    key,
    value,
    omega,
    features=features,
    key_mask=key_mask,
    smoothing=smoothing,
    log_weight=log_weight,
    causal=causal,
    implementation=implementation,
  )
  return out


def _attend(query, key, value, omega, *, implementation, features, causal, **options):
  """Return the output, and the denominators that it was divided by, if anybody looks at them."""
  arrays = (query, key, value, omega)
  options['smoothing'] = smoothing = resolve_smoothing(features, options['smoothing'])
  if runs_fused(implementation, *arrays, features=features, smoothing=smoothing, causal=causal):
    from kl_flax.kernels.fused import fused_attention

    return fused_attention(*arrays, features=features, **options)
  sums = causal_sums if causal else attention_sums
  numerator, denominator = sums(query, key, value, omega, features=features, **options)
  floor = denominator_floor(features, 0 if omega is None else omega.shape[1])
  return divide(numerator, denominator, floor).astype(query.dtype), denominator


class KernelAttention(nn.Module):
  """Attention whose kernel is learned: a sampler of frequencies, a feature map, the contraction.

  Drop it in wherever query, key and value of shape [batch, length, heads, head size] meet. A
  sampler draws its noise from the PRNG stream 'spectral', which every `apply` must then be given.

  With Fourier features it sows 'nonpositive_denominators' into the collection 'diagnostics': the
  fraction of denominators that are not positive, though they estimate what is, and 'denominators',
  how many it is of. Where there are as many keys as queries, they are those of the queries whose
  own key takes part.

  Attributes:
    sampler: module that returns omega [H, M, D] when called with H and D, such as
      `kl_flax.GaussianMixture`; None for features='elu' and 'relu'. As with any module in Flax,
      its parameters stand where it is made: in a compact method beside those of the attention, and
      two attentions that are given it share them; elsewhere in 'sampler' of the attention.
    features: 'positive', 'softmax', 'fourier', 'elu' or 'relu'.
    smoothing: see `kernel_attention`.
    causal: whether a position sees itself and earlier ones alone.
    implementation: see `kernel_attention`.

  Raises:
    ValueError: for a class in place of a sampler; when called, as `kernel_attention` does.

  >>> import jax, jax.numpy as jnp
  >>> from kl_flax.spectral import GaussianMixture
  >>> attention = KernelAttention(GaussianMixture(8), 'fourier')
  >>> x = jnp.ones((2, 6, 4, 16))
  >>> rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
  >>> out, variables = attention.init_with_output(rngs, x, x, x)
  >>> out.shape
  (2, 6, 4, 16)
  """

  sampler: nn.Module | None
  features: FeatureMap = 'positive'
  smoothing: float | None = None
  causal: bool = False
  implementation: Implementation = 'auto'

  def __post_init__(self) -> None:
    """Check the sampler at once: a class, when called, would take heads for frequencies."""
    super().__post_init__()
    if isinstance(self.sampler, type):
      name = self.sampler.__name__
      raise ValueError(f'sampler must be an instance, such as {name}(128), got the class {name}')

  @property
  def takes_fewer_queries(self) -> bool:
    """Whether there may be fewer queries than keys: not where their order counts."""
    return not self.causal

  @property
  def effective_smoothing(self) -> float:
    """Return `smoothing`, or what these features take by default."""
    return resolve_smoothing(self.features, self.smoothing)

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'b l h d'],
    key: Float[Array, 'b s h d'],
    value: Float[Array, 'b s h e'],
    key_mask: Bool[Array, 'b s'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'b l h e']:
    """Return the attention output; there are no weights that dropout could act on.

    Raises:
      ValueError: see `kernel_attention`.
    """
    del deterministic
    check_arrays(query, key, value)
    omega, log_weight = self.frequencies(query.shape[2], query.shape[3])
    out, denominator = _attend(
      query,
      key,
      value,
      omega,
      features=self.features,
      key_mask=key_mask,
      smoothing=self.effective_smoothing,
      log_weight=log_weight,
      causal=self.causal,
      implementation=self.implementation,
    )
    if self.features == 'fourier' and not self.is_initializing():
      self._sow_nonpositive(denominator, key_mask)
    return out

  def frequencies(
    self, num_heads: int, head_dim: int
  ) -> tuple[Float[Array, 'h m d'] | None, Float[Array, 'h m'] | None]:
    """Return omega and log_weight that a call with the same variables and key draws.

    They are what `kl_flax.decode_step` and `kernel_attention` take. Use it as

        attention.apply(variables, H, D, method='frequencies', rngs={'spectral': key})

    and not the sampler alone: the draw depends on the key and on the module's place in the model,
    which Flax folds into it. For the same reason attention inside of a model is asked from there,
    by a method of the model that calls `self.attention.frequencies(H, D)`.

    Args:
      num_heads: H.
      head_dim: D.

    Returns:
      omega, None without a sampler, and the log of its weights, None where all count equally.
    """
    if self.sampler is None:
      return None, None
    return as_weighted(self.sampler(num_heads, head_dim))

  def _sow_nonpositive(self, denominator, key_mask):
    """Let whoever trains see how often the estimate of a positive quantity is none.

    The fraction is that of the valid positions: as many queries as keys are taken for those of one
    sequence, where the key mask says which queries are padding.
    """
    valid = jnp.ones(denominator.shape, bool)
    if key_mask is not None:  # Rows without any valid key estimate nothing.
      seen = jnp.cumsum(key_mask, axis=1) if self.causal else jnp.sum(key_mask, axis=1)[:, None]
      counts = seen > 0
      if denominator.shape[1] == key_mask.shape[1]:
        counts &= key_mask
      valid &= counts[:, :, None, None]
    count = jnp.sum(valid, dtype=jnp.float32)
    fraction = jnp.sum((denominator <= 0) & valid) / jnp.maximum(count, 1)
    self.sow('diagnostics', 'nonpositive_denominators', fraction)
    self.sow('diagnostics', 'denominators', count)
