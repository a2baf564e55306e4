# %% [markdown]
# # Reading results of the Long Range Arena
#
# Every finished run leaves `results.json` (the test split, read once), `metrics.jsonl` (one record per
# evaluation) and `config.json` (everything that made it). The package comes with the runs behind
# README's tables; yours are read in the same way: put their directories in place of `KEPT`.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

from lra_tasks.plotting import color, label
from lra_tasks.reporting.published import load_published
from lra_tasks.reporting.rows import build_report
from lra_tasks.reporting.text import render_table
from lra_tasks.runs.finding import KEPT, load_results

found = load_results([KEPT / task for task in ('listops', 'text')])
report = build_report(found, load_published())
print(render_table(report))

# %% [markdown]
# ## How sure is a figure?
#
# A test split of $n$ examples leaves a standard error of $(p (1 - p) / n)^{1/2}$: on ListOps, with
# 2,000 examples, one point. A difference of two figures has 1.4 times that error: on ListOps less than three
# points say nothing, in our rows as in published ones.

# %%
rows = [row for row in report.tables[0].rows if row.kind == 'run']
figure, axis = plt.subplots(figsize=(7, 0.6 + 0.5 * len(rows)), layout='constrained')
for i, row in enumerate(rows):
  run = row.runs[0]
  error = np.sqrt(run.accuracy * (1 - run.accuracy) / run.examples)
  axis.errorbar(100 * row.accuracy, i, xerr=200 * error, fmt='o', capsize=4, color=color(row.model))
  if row.paper and row.paper.value is not None:
    axis.plot(row.paper.value, i, 'D', fillstyle='none', color='0.3')
axis.set_yticks(range(len(rows)), [label(row.model) for row in rows])
axis.set(xlabel='test accuracy, % (bars: two standard errors; diamonds: paper)')
plt.show()

# %% [markdown]
# ## Learning curves
#
# Of the three models with Fourier features one begins to learn after 6,000 steps; the other two lie on
# each other: they have learnt nothing.

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 3.4), layout='constrained')
for row in rows:
  folder = row.runs[0].path.parent
  records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  steps = [record['step'] for record in records]
  for axis, name in zip(axes, ('eval_accuracy', 'train_loss'), strict=True):
    axis.plot(steps, [record[name] for record in records], '.-', color=color(row.model),
              label=label(row.model))  # fmt: skip
    axis.set(xlabel='step', title=name.replace('_', ' '))
figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right upper')
plt.show()

# %% [markdown]
# ## What made it
#
# Results are told apart by the digest of their config (seed aside), and say which revision of the code,
# which versions and which hardware they come from. A preset may have changed since; one with a star had
# fields changed: config.json has every field that there was.

# %%
run = rows[0].runs[0]
config = json.loads((run.path.parent / 'config.json').read_text())
print(run.model, run.preset, 'seed', run.seed, 'config', run.config_id)
print('revision', run.git_revision, 'on', run.device)
print({name: config['versions'][name] for name in ('jax', 'flax', 'optax')})
print({name: config['config'][name] for name in ('learning_rate', 'warmup', 'batch_size')})
print('command at that revision: python -m lra_tasks.train '
      f'--config=configs/{run.task}.py:{run.model},{run.preset.rstrip("*")} '
      f'--config.random_seed={run.seed}')  # fmt: skip
