import pytest
from absl import flags

from lra_tasks import gradient_statistics, inspect_run, variance
from lra_tasks.data.retrieval import Retrieval
from lra_tasks.tasks import TASKS

CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'
# As the authors of the data sets, or readers such as TFDS, number them.
NAMES = {
  'listops': '0 1 2 3 4 5 6 7 8 9',
  'retrieval': 'not_citing citing',
  'text': 'negative positive',
  'image': CIFAR10,
  **dict.fromkeys(
    ['pathfinder32', 'pathfinder64', 'pathfinder128', 'pathfinder256'], 'negative positive'
  ),
  'sparse_sum': '-4 -3 -2 -1 0 1 2 3 4',
  'wikitext': '',
  'sst2': 'negative positive',
  'mrpc': 'not_equivalent equivalent',
  'qqp': 'not_duplicate duplicate',
  'mnli': 'entailment neutral contradiction',
  'qnli': 'entailment not_entailment',
  'rte': 'entailment not_entailment',
  'wnli': 'not_entailment entailment',
  'cola': 'unacceptable acceptable',
}


def make_builder(task, directory, **options):
  spec = TASKS[task]
  options = {'task_name': spec.task_name} | options
  return spec.make_builder(spec.data_options(), data_dir=str(directory), **options)


@pytest.mark.parametrize('task', TASKS)
def test_classes_have_names(task, tmp_path):
  # Retrieval's builder looks for its source at once.
  builder = Retrieval if task == 'retrieval' else make_builder(task, tmp_path)
  assert builder.class_names == tuple(NAMES[task].split())
  assert len(builder.class_names) == TASKS[task].num_classes


@pytest.mark.parametrize(
  ('task_name', 'names'),
  [
    ('yelp_reviews', ('negative', 'positive')),
    ('agnews', ('World', 'Sports', 'Business', 'Sci/Tech')),
  ],
)
def test_other_texts_have_names_of_their_own(task_name, names, tmp_path):
  builder = make_builder('text', tmp_path, task_name=task_name)
  assert builder.class_names == names
  assert builder.num_classes == len(names)


@pytest.mark.parametrize('command', [gradient_statistics, inspect_run, variance])
def test_commands_about_runs_take_all_flags_of_data_but_the_task(command):
  values = flags.FlagValues()
  command.define_flags(values)
  assert {'data_dir', 'source', 'task_name'} <= set(values)
  assert 'task' not in values
