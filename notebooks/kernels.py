# %% [markdown]
# # Kernels from first principles
#
# Softmax attention weighs values by $\exp(q \cdot k)$. Any other positive similarity of queries and
# keys would do, and one that is an inner product of features, $\kappa(q, k) = \phi(q) \cdot \phi(k)$,
# makes attention linear in the length: the sums over keys are taken once, for all queries.
#
# This page builds such kernels from their *spectral distribution*, looks at how good their estimates
# are, and lets a kernel be learned.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from kl_flax import (
  fourier_features,
  gmm_frequencies,
  kernel_attention,
  naive_attention_weights,
  positive_features,
)

# %% [markdown]
# ## A kernel is an average of waves
#
# Bochner's theorem: every kernel that depends on $\delta = q - k$ alone is an average of waves,
# $\kappa(\delta) = \mathbb{E}_\omega \cos(\omega \cdot \delta)$, over some distribution of frequencies
# $\omega$. For $\omega \sim N(0, I)$ that is the Gaussian kernel $\exp(-|\delta|^2 / 2)$.
#
# `fourier_features` returns cosines and sines of $\omega \cdot x$. Their inner product is the average
# over the $M$ frequencies that were drawn.

# %%
dim = 8


def draw(seed, num_frequencies):
  """Return omega [1, M, D]: frequencies of one head."""
  return jax.random.normal(jax.random.key(seed), (1, num_frequencies, dim))


@jax.jit
def estimate_fourier(q, k, omega):
  """Return the estimated kernel of n pairs, [n]."""
  phi = lambda x: fourier_features(x[None, :, None], omega)[0, :, 0]
  return jnp.sum(phi(q) * phi(k), axis=-1)


@jax.jit
def estimate_positive(q, k, omega):
  phi = lambda x: positive_features(x[None, :, None], omega)[0, :, 0]
  return jnp.sum(phi(q) * phi(k), axis=-1)


direction = np.ones(dim, np.float32) / np.sqrt(dim)
distance = np.linspace(0, 4, 60, dtype=np.float32)
q = 0.5 * distance[:, None] * direction
k = -q  # The pair lies around the origin: what counts for Fourier features is the distance alone.

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout='constrained')
for axis, num_frequencies in zip(axes, (16, 64, 256), strict=True):
  for seed in range(8):
    axis.plot(distance, estimate_fourier(q, k, draw(seed, num_frequencies)), color='C0', alpha=0.4)
  axis.plot(distance, np.exp(-(distance**2) / 2), 'k', label='exact')
  axis.set(title=f'M = {num_frequencies}', xlabel='|q − k|')
axes[0].set_ylabel('kernel, eight draws')
axes[0].legend()
plt.show()

# %% [markdown]
# ## Errors fall like $M^{-1/2}$, and where they are matters
#
# Fourier estimates have the same *absolute* error everywhere, so that small kernel values, those of
# pairs that should not attend to each other, drown in noise and may be negative.
#
# Positive features, $\phi(x) = \exp(\omega \cdot x - |x|^2)$, have the same expectation. They are
# never negative, and their *relative* error depends on $|q + k|$ instead.

# %%
counts = np.array([4, 16, 64, 256])
near, far = np.float32(1.0), np.float32(3.0)
middle = np.zeros(dim, np.float32)
middle[:2] = 0.5, -0.5  # Of the pair, at a right angle to q − k: |q + k| = 1.41 in both cases.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout='constrained')
for axis, features, estimate in zip(
  axes, ('Fourier', 'positive'), (estimate_fourier, estimate_positive), strict=True
):
  for size in (near, far):
    q1, k1 = (middle[None] + sign * 0.5 * size * direction[None] for sign in (1, -1))
    exact = np.exp(-(size**2) / 2)
    errors = []
    for count in counts:
      run = jax.jit(jax.vmap(lambda omega, q=q1, k=k1, f=estimate: f(q, k, omega)[0]))
      values = run(jax.random.normal(jax.random.key(0), (2000, 1, int(count), dim)))
      errors.append(np.sqrt(np.mean((values - exact) ** 2)) / exact)
    style = 'o-' if size == near else 's--'  # Two of the curves coincide.
    axis.loglog(
      counts, errors, style, mfc='none', label=f'|q − k| = {size:.0f}, kernel {exact:.3f}'
    )
  axis.loglog(counts, counts**-0.5, 'k:', label='$M^{-1/2}$')
  axis.set(title=f'{features} features', xlabel='M')
  axis.legend()
axes[0].set_ylabel('relative error (root mean square)')
plt.show()

# %% [markdown]
# Both pairs have the same $|q + k|$, and positive features are equally good at both: their two curves
# are one. (Rare large draws make their errors, so that single points stray.) Fourier features
# are useless for the far one. (At $q + k = 0$ positive features would even be exact.)
#
# ## Other spectra are other kernels
#
# A Gaussian mixture of frequencies can be narrow (a kernel that looks far), wide (one that looks
# near), or have its mass away from the origin (one that oscillates). `gmm_frequencies` draws
# from it: $\omega = S n + \mu$.

# %%
noise = jax.random.normal(jax.random.key(1), (1, 1, 4000, dim))  # Shared by both components.
spectra = {
  'N(0, I)': (0.0, 1.0),
  'narrow': (0.0, 0.4),
  'wide': (0.0, 2.0),
  'mass at ±3': (3.0, 0.4),
}
figure, axis = plt.subplots(figsize=(6, 3.4), layout='constrained')
for name, (offset, scale) in spectra.items():
  mean = offset * jnp.stack([direction, -direction])[None]  # Two components, ±mu.
  omega = gmm_frequencies(noise, mean, jnp.full((1, 2, dim), scale))
  axis.plot(distance, estimate_fourier(q, k, omega), label=name)
axis.set(xlabel='|q − k|', ylabel='kernel')
axis.legend()
plt.show()

# %% [markdown]
# ## Learning one
#
# The noise is fixed, mean and scale are parameters: gradients go through `gmm_frequencies`. As an
# exercise, let a mixture find a kernel that it is shown. In a model the loss of the task takes
# the place of this one.

# %%
target = np.exp(-(distance**2) / 8) * np.cos(2 * distance)
noise = jax.random.normal(jax.random.key(2), (1, 1, 256, dim))


def kernel_of(params):
  mean = jnp.stack([params['mean'], -params['mean']])[None]
  scale = jnp.broadcast_to(jnp.exp(params['log_scale']), (1, 2, dim))
  return estimate_fourier(q, k, gmm_frequencies(noise, mean, scale))


optimizer = optax.adam(0.05)
params = {'mean': 0.3 * direction, 'log_scale': jnp.zeros(dim)}


@jax.jit
def step(params, state):
  loss, grads = jax.value_and_grad(lambda p: jnp.mean((kernel_of(p) - target) ** 2))(params)
  updates, state = optimizer.update(grads, state)
  return optax.apply_updates(params, updates), state, loss


before, state, losses = kernel_of(params), optimizer.init(params), []
for _ in range(300):
  params, state, loss = step(params, state)
  losses.append(float(loss))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout='constrained')
axes[0].plot(distance, target, 'k', label='shown')
axes[0].plot(distance, before, 'C1:', label='at first')
axes[0].plot(distance, kernel_of(params), 'C0', label='learned')
axes[0].set(xlabel='|q − k|', ylabel='kernel')
axes[0].legend()
axes[1].semilogy(losses)
axes[1].set(xlabel='step', ylabel='mean squared error')
plt.show()
print(f'mean squared error {losses[0]:.2g} -> {losses[-1]:.1g}')

# %% [markdown]
# ## Attention through a kernel
#
# `kernel_attention` is linear in the length. `naive_attention_weights` returns the matrix that it
# never forms, which is good for looking: rows are queries, and every row sums to one.

# %%
length = 48
query, key = 0.6 * jax.random.normal(jax.random.key(3), (2, 1, length, 1, dim))
value = jax.random.normal(jax.random.key(4), (1, length, 1, 4))
logits = -0.5 * jnp.sum((query[0, :, None, 0] - key[0, None, :, 0]) ** 2, -1) / np.sqrt(dim)
exact_weights = jax.nn.softmax(logits)
exact = exact_weights @ value[0, :, 0]

figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout='constrained')
axes[0].imshow(exact_weights, vmin=0, vmax=0.05)
axes[0].set_title('exact Gaussian kernel')
for axis, count in zip(axes[1:], (16, 128, 1024), strict=True):
  omega = draw(5, count)
  weights = naive_attention_weights(query, key, omega, features='positive')
  out = kernel_attention(query, key, value, omega, features='positive')
  error = np.linalg.norm(out[0, :, 0] - exact) / np.linalg.norm(exact)
  axis.imshow(weights[0, :, :, 0], vmin=0, vmax=0.05)
  axis.set_title(f'M = {count}: error {100 * error:.0f} %')
plt.show()
