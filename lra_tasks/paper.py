"""What the KL-Transformer paper's tables have, for commands that need neither models nor JAX."""

# Models of Tables 2 and 5 that are here, and the controls with the Gaussian kernel.
PAPER_MODELS = (
  'gmm_rks', 'fastfood_rks', 'generative_rks', 'gmm_prf', 'fastfood_prf', 'generative_prf',
  'transformer', 'linear_transformer', 'performer', 'rks', 'prf',
)  # fmt: skip
PAPER_TASKS = ('listops', 'text', 'retrieval', 'image')
# Of Tables 3 and 13, which report the best of several learning rates.
PAPER_SHORT_TASKS = ('sst2', 'mrpc', 'qqp', 'mnli', 'qnli', 'wnli', 'rte', 'cola')


def split_name(task: str, split: str) -> str:
  """Return what a split is called in reports: GLUE has no labels of its test sets.

  >>> split_name('text', 'test'), split_name('sst2', 'test')
  ('test split', 'development set')
  """
  return 'development set' if task in PAPER_SHORT_TASKS and split == 'test' else f'{split} split'
