# %% [markdown]
# # A learned kernel in your own Flax model
#
# `KernelAttention` goes wherever queries, keys and values of shape [batch, length, heads, head size]
# meet. It needs one more PRNG stream, `spectral`, from which its frequencies are drawn. The model here
# is a small one for associative recall: a sequence shows pairs of a letter and a digit, and ends with a
# letter whose digit is asked for.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from kl_flax import GaussianMixture, KernelAttention, decode_step, init_decoding, kernel_attention
from kl_flax.inspection import attention_map, capture

num_letters, num_digits, num_pairs = 12, 8, 6
length = num_pairs + 1


def make_batch(random, size=64):
  """Return letters and digits [b, length] (the last digit is hidden: num_digits), and answers [b]."""
  letters = np.argsort(random.random((size, num_letters)), axis=1)[:, :num_pairs]
  digits = random.integers(num_digits, size=(size, num_pairs))
  asked = random.integers(num_pairs, size=size)
  rows = np.arange(size)
  letters = np.concatenate([letters, letters[rows, asked, None]], axis=1)
  answers = digits[rows, asked]
  digits = np.concatenate([digits, np.full((size, 1), num_digits)], axis=1)
  return letters, digits, answers


# %% [markdown]
# ## The model
#
# Two layers. Attention is one module: a sampler of frequencies (here a Gaussian mixture, whose means
# and variances are learned), and a feature map.


# %%
class Layer(nn.Module):
  num_heads: int = 4
  head_dim: int = 16
  num_frequencies: int = 64

  @nn.compact
  def __call__(self, x):
    heads = (self.num_heads, self.head_dim)
    y = nn.LayerNorm()(x)
    query, key, value = (nn.DenseGeneral(heads, use_bias=False)(y) for _ in range(3))
    sampler = GaussianMixture(self.num_frequencies, covariance='diagonal')
    attended = KernelAttention(sampler, 'positive')(query, key, value)
    x = x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1))(attended)
    return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x))))


class Recall(nn.Module):
  width: int = 64

  @nn.compact
  def __call__(self, letters, digits):
    x = nn.Embed(num_letters, self.width)(letters) + nn.Embed(num_digits + 1, self.width)(digits)
    for _ in range(2):
      x = Layer()(x)
    return nn.Dense(num_digits)(nn.LayerNorm()(x[:, -1]))


model = Recall()
random = np.random.default_rng(0)
letters, digits, _ = make_batch(random)
rngs = {'params': jax.random.key(0), 'spectral': jax.random.key(1)}
params = jax.jit(model.init)(rngs, letters, digits)['params']

# %% [markdown]
# ## Training
#
# The one thing to remember: give every `apply` a key for `spectral`. A new one every step means new
# frequencies every step, so that the model learns to live with any of them.

# %%
optimizer = optax.adam(2e-3)


@jax.jit
def step(params, state, key, letters, digits, answers):
  def loss_fn(params):
    logits = model.apply({'params': params}, letters, digits, rngs={'spectral': key})
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()
    return loss, jnp.mean(jnp.argmax(logits, -1) == answers)

  (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
  updates, state = optimizer.update(grads, state)
  return optax.apply_updates(params, updates), state, loss, accuracy


state, history = optimizer.init(params), []
for i in range(400):
  key = jax.random.fold_in(jax.random.key(2), i)
  params, state, loss, accuracy = step(params, state, key, *make_batch(random))
  history.append((float(loss), float(accuracy)))

losses, accuracies = np.array(history).T
smooth = lambda x: np.convolve(x, np.ones(10) / 10, 'valid')
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout='constrained')
axes[0].plot(smooth(losses))
axes[0].set(xlabel='step', ylabel='loss')
axes[1].plot(smooth(accuracies))
axes[1].axhline(1 / num_digits, color='0.5', linestyle=':')
axes[1].set(xlabel='step', ylabel='accuracy', ylim=(0, 1.02))
plt.show()
print(f'accuracy of the last 50 steps: {100 * accuracies[-50:].mean():.1f} %')

# %% [markdown]
# ## What it looks at
#
# `kl_flax.inspection.capture` runs any model as it is and keeps what its attentions got, drew and returned.
# The rows below are the weights of the last position, which asks for a letter, in one example, head by head,
# over the positions. Orange marks where that letter stood: heads of the first layer look there.

# %%
letters, digits, answers = make_batch(random, 1)
layers = capture(model, params, letters, digits)
weights = np.stack([attention_map(layer, 0)[:, -1] for layer in layers])  # [layer, head, position]
figure, axes = plt.subplots(2, 1, figsize=(9, 3), layout='constrained', sharex=True)
for axis, rows, number in zip(axes, weights, (1, 2), strict=True):
  axis.imshow(rows, aspect='auto')
  axis.set(ylabel=f'layer {number}\nhead', yticks=range(len(rows)))
  for place in np.flatnonzero(letters[0, :-1] == letters[0, -1]):
    axis.axvspan(place - 0.5, place + 0.5, fill=False, edgecolor='tab:orange', linewidth=2)
axes[-1].set(xlabel='position')
plt.show()

# %% [markdown]
# ## The same without a module
#
# `kernel_attention` is the pure function below: frequencies go in, nothing is drawn. With
# `causal=True` a position sees itself and earlier ones alone, and `decode_step` gives the same result
# token by token, from a state whose size does not grow with the length.

# %%
batch, heads, dim, count = 2, 4, 16, 128
query, key, value = jax.random.normal(jax.random.key(3), (3, batch, 20, heads, dim))
omega = jax.random.normal(jax.random.key(4), (heads, count, dim))
whole = kernel_attention(query, key, value, omega, causal=True)

decoding, outs = init_decoding(batch, heads, count, dim), []
for t in range(20):
  decoding, out = decode_step(decoding, query[:, t], key[:, t], value[:, t], omega)
  outs.append(out)
print('largest difference:', float(jnp.max(jnp.abs(jnp.stack(outs, 1) - whole))))
size = sum(leaf.size for leaf in jax.tree.leaves(decoding)) // batch
print(f'state: {size:,} numbers for each sequence, whatever its length')
