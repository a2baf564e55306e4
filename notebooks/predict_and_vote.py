# %% [markdown]
# # Predict with a trained model, and vote
#
# Any directory that `lra_tasks.train` has written is a model: `Predictor.restore` needs no data set and
# no config file. Here it is the quickstart's, a learned kernel on short ListOps expressions; if it was
# not trained yet, a shorter run of the same config is made now.

# %%
import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from kl_flax import Predictor

root = '.' if os.path.exists('configs') else '..'
run = os.environ.get('RUN', f'{root}/runs/quickstart/gmm_prf')
if not os.path.exists(f'{run}/results.json'):
  run = f'{root}/runs/notebook/gmm_prf'
  command = [
    sys.executable, '-m', 'lra_tasks.train', f'--config={root}/configs/quickstart.py:gmm_prf',
    '--config.num_train_steps=200', '--config.eval_frequency=200', f'--model_dir={run}',
  ]  # fmt: skip
  subprocess.run(command, capture_output=True, text=True, check=True)
with open(f'{run}/results.json') as file:
  results = json.load(file)
print(f'{results["steps"]} steps, {100 * results["accuracy"]:.1f} % right on the test split,')
print(f'{100 * results["majority_class"]:.1f} % by always answering the commonest class')
predictor = Predictor.restore(run)

# %% [markdown]
# ## Raw text in, labels and probabilities out
#
# Programs are compiled once for every length bucket (powers of two) and for four batch sizes, of which
# calls are made: 1, 4, 8 and 32. `warm_up` does so ahead and returns what a batch takes then.

# %%
for (length, batch), seconds in predictor.warm_up([10, 60]).items():
  print(f'length {length:3}, batch {batch:2}: {1e3 * seconds:.2f} ms')

expressions = ['[MAX 2 9 [MIN 4 7 ] 0 ]', '[MED 1 5 3 ]', '[SM 5 6 [MAX 1 2 ] ]', '[MIN 8 9 ]']
values_of = (9, 3, 3, 8)
prediction = predictor.predict(expressions)
for text, value, label, probabilities in zip(
  expressions, values_of, prediction.labels, prediction.probabilities, strict=True
):
  print(f'{text:28} is {value}, predicted {label} ({100 * probabilities[label]:.0f} %)')

# %% [markdown]
# How often a model of this size and training is right stands above: it is here for how it is used.

# %% [markdown]
# ## A hundred draws
#
# The kernel is an expectation over random frequencies, and every prediction uses one draw of them.
# `vote` makes many, in one compiled program, and tells how far they agree: the share of draws that
# disagree with the majority (`inconsistency`), and the spread of the log-odds relative to their
# mean (`relative_deviation`).

# %%
start = time.perf_counter()
vote = predictor.vote(expressions, samples=100)
print(f'first call, compiled: {time.perf_counter() - start:.1f} s')
start = time.perf_counter()
vote = predictor.vote(expressions, samples=100)
print(f'after that: {1e3 * (time.perf_counter() - start):.0f} ms for 100 draws of each')

figure, axes = plt.subplots(
  1, len(expressions), figsize=(13, 2.8), sharey=True, layout='constrained'
)
for axis, text, votes, inconsistency in zip(
  axes, expressions, vote.votes, vote.inconsistency, strict=True
):
  axis.bar(range(10), votes)
  axis.set(title=f'{text}\n{100 * inconsistency:.0f} % disagree', xlabel='class')
  axis.set_xticks(range(10))
axes[0].set_ylabel('draws')
plt.show()

# %% [markdown]
# ## Is the model more often right where its draws agree?
#
# Random expressions with known values, put in order by how far the draws agree.

# %%
random = np.random.default_rng(0)


def expression(depth=0):
  """Return a random expression and its value."""
  if depth == 2 or (depth and random.random() < 0.7):
    value = int(random.integers(10))
    return str(value), value
  operator = random.choice(['[MIN', '[MAX', '[MED', '[SM'])
  parts, values = zip(*(expression(depth + 1) for _ in range(random.integers(2, 5))), strict=True)
  function = {'[MIN': min, '[MAX': max, '[MED': np.median, '[SM': lambda v: sum(v) % 10}[operator]
  return f'{operator} {" ".join(parts)} ]', int(function(values))


texts, values = zip(*(expression() for _ in range(160)), strict=True)
vote = predictor.vote(texts, samples=32)
right = vote.labels == np.array(values)
order = np.argsort(vote.inconsistency, kind='stable')
groups = np.array_split(order, 4)
for i, group in enumerate(groups):
  low, high = 100 * vote.inconsistency[group].min(), 100 * vote.inconsistency[group].max()
  print(
    f'quarter {i + 1}: {low:3.0f} to {high:3.0f} % disagree, {100 * right[group].mean():.0f} % right'
  )

# %% [markdown]
# ## Take it elsewhere
#
# `export` writes a file that runs with JAX alone, on CPU, CUDA and TPU, for batches of any size, and
# beside it what makes ids of symbols: the first of them has `first_id`, the others follow.

# %%
with tempfile.TemporaryDirectory() as directory:
  path = os.path.join(directory, 'model.jax')
  predictor.export(path)
  with open(path, 'rb') as file:
    exported = jax.export.deserialize(bytearray(file.read()))
  with open(f'{path}.json') as file:
    tokenizer = json.load(file)['tokenizer']
print(exported.in_avals, exported.platforms)
ids = np.zeros((2, exported.in_avals[0].shape[1]), np.int32)
for row, text in enumerate(expressions[:2]):
  symbols = [symbol for symbol in text.split() if symbol not in tokenizer['dropped']]
  places = [tokenizer['symbols'].index(symbol) for symbol in symbols]
  ids[row, : len(places)] = np.array(places) + tokenizer['first_id']
print(np.argmax(exported.call(ids, np.count_nonzero(ids, axis=1).astype(np.int32)), axis=1))
