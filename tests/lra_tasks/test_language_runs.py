"""Tests of pre-training on a text and fine-tuning on GLUE, by the commands' own code."""

import json

import numpy as np
import pytest
from run_helpers import run_here

from kl_flax import Predictor
from kl_flax.tokenizers import WordPieceTokenizer
from lra_tasks import command_line, tasks
from lra_tasks.configuration import resolve
from lra_tasks.runs.log import read_records

WORDS = [
  'the',
  'a',
  'man',
  'woman',
  'dog',
  'cat',
  'sees',
  'hears',
  'likes',
  'old',
  'young',
  'red',
  'house',
  'garden',
  'in',
  'and',
]
FIELDS = {'num_train_steps': 4, 'eval_frequency': 2, 'checkpoint_freq': 4, 'batch_size': 8}
MODEL = 'linear_transformer'


def sentences(count, seed):
  rng = np.random.default_rng(seed)
  return [' '.join(rng.choice(WORDS, rng.integers(4, 12))) + ' .' for _ in range(count)]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A text, and the tables of CoLA and RTE."""
  folder = tmp_path_factory.mktemp('texts')
  (folder / 'text.txt').write_text('\n'.join(sentences(400, 0)) + '\n')
  for split, count in (('train', 40), ('dev', 12)):
    (folder / 'CoLA').mkdir(exist_ok=True)
    (folder / 'RTE').mkdir(exist_ok=True)
    rows = [f'gj04\t{i % 2}\t\t{text}' for i, text in enumerate(sentences(count, 1))]
    (folder / f'CoLA/{split}.tsv').write_text('\n'.join(rows) + '\n')
    labels = ('entailment', 'not_entailment')
    pairs = zip(sentences(count, 2), sentences(count, 3), strict=True)
    rows = [f'{i}\t{a}\t{b}\t{labels[i % 2]}' for i, (a, b) in enumerate(pairs)]
    header = 'index\tsentence1\tsentence2\tlabel'
    (folder / f'RTE/{split}.tsv').write_text('\n'.join([header, *rows]) + '\n')
  return folder


def run(shared, directory, source, task, argument, **more):
  code = run_here(shared, directory, task=task, argument=argument, source=str(source), **more)
  assert code == 0
  return json.loads((directory / 'results.json').read_text())


@pytest.fixture(scope='module')
def pretrained(shared, source):
  directory = shared / 'wikitext'
  path = source / 'text.txt'
  found = run(shared, directory, path, 'wikitext', f'{MODEL},tiny', **FIELDS)
  assert found['task'].startswith('wikitext')
  assert not found['comparable']
  assert 0 <= found['accuracy'] <= 1
  assert (found['f1'], found['matthews'], found['pretrained']) == (None, None, None)
  return directory


@pytest.mark.slow
def test_masked_words_are_learned_from_those_around_them(shared, tmp_path):
  """Lines count in steps of 1, 3 or 7: a word alone says nothing of its neighbour."""
  rng, names = np.random.default_rng(0), [f'word{chr(97 + i)}' for i in range(20)]
  lines = [
    ' '.join(names[(start + step * i) % 20] for i in range(30))
    for start, step in zip(rng.integers(0, 20, 4000), rng.choice([1, 3, 7], 4000), strict=True)
  ]
  (tmp_path / 'text.txt').write_text(' .\n'.join(lines) + '\n')
  sizes = {'emb_dim': 64, 'qkv_dim': 64, 'mlp_dim': 128, 'num_heads': 4, 'num_layers': 2}
  steps = {'num_train_steps': 500, 'eval_frequency': 500, 'checkpoint_freq': 500, 'warmup': 50}
  options = sizes | steps | {'batch_size': 16, 'learning_rate': 2e-3, 'dropout_rate': 0.0}
  data = resolve(command_line.load('configs/wikitext.py:transformer,tiny'))['data']
  options |= {'max_length': 31, 'data': data | {'max_length': 32}}
  source = tmp_path / 'text.txt'
  found = run(shared, tmp_path / 'run', source, 'wikitext', 'transformer,tiny', **options)
  assert found['majority_class'] > 0.05
  assert found['accuracy'] > 2 * found['majority_class']


def test_fine_tuning_has_vocabulary_and_encoder_of_the_pretraining(
  shared, source, pretrained, tmp_path
):
  options = FIELDS | {'hidden_dim': 16, 'activation': 'tanh'}
  argument = f'{MODEL},cola,tiny'
  found = run(shared, tmp_path, source, 'glue', argument, init_from=str(pretrained), **options)
  assert found['task'] == 'cola'
  assert found['pretrained'].startswith('wikitext')
  assert -1 <= found['matthews'] <= 1
  assert found['f1'] is None  # CoLA has no F1.
  records = read_records(tmp_path / 'metrics.jsonl')
  best = max(records, key=lambda record: (record['eval_matthews'], record['step']))
  assert (found['best_step'], found['validation_score']) == (best['step'], best['eval_matthews'])
  assert found['validation_is_test']
  ours, theirs = (
    WordPieceTokenizer((folder / 'tokenizer.json').read_text()) for folder in (tmp_path, pretrained)
  )
  assert ours == theirs
  predictor = Predictor.restore(str(tmp_path))
  assert predictor.tokenizer == theirs
  assert predictor.predict(sentences(3, 5)).probabilities.shape == (3, 2)
  with pytest.raises(ValueError, match=r"input 0: expected one text, got \('the dog', 'a cat'\)"):
    predictor.predict([('the dog', 'a cat')])
  with pytest.raises(ValueError, match='input 1: no tokens'):
    predictor.predict(['the dog', ' '])


@pytest.mark.slow
def test_masked_ids_of_a_task_with_a_metric_of_its_own(shared, source, tmp_path):
  options = FIELDS | {'objective': 'masked'}
  found = run(shared, tmp_path, source, 'glue', f'{MODEL},cola,tiny', **options)
  assert (found['judged_by'], found['matthews'], found['f1']) == ('accuracy', None, None)
  assert found['validation_score'] == found['validation_accuracy']


@pytest.mark.slow
def test_pairs_from_scratch(shared, source, tmp_path):
  options = FIELDS | {'hidden_dim': 16, 'activation': 'tanh'}
  found = run(shared, tmp_path, source, 'glue', f'{MODEL},rte,tiny', **options)
  assert (found['task'], found['matthews'], found['pretrained']) == ('rte', None, None)
  description = json.loads((tmp_path / 'config.json').read_text())
  assert description['model']['separator'] == 2
  assert description['tokenizer']['type'] == 'wordpiece'
  pair = tuple(sentences(2, 6))
  predictor = Predictor.restore(str(tmp_path))
  assert predictor.predict([pair, pair]).labels.shape == (2,)
  with pytest.raises(ValueError, match=r'input 0: expected a pair of texts \(first, second\)'):
    predictor.predict(pair)


def test_a_vocabulary_must_be_that_of_the_data(shared, source, pretrained, tmp_path):
  other = tmp_path / 'other.txt'
  other.write_text('\n'.join(text.upper() + ' zebra' for text in sentences(300, 7)))
  with pytest.raises(
    ValueError,
    match=r'--init_from names does not fit wikitext: it is WordPieceTokenizer \(\d+ ids\)',
  ):
    run(shared, tmp_path / 'run', other, 'wikitext', f'{MODEL},tiny', init_from=str(pretrained))


@pytest.mark.parametrize(
  ('file', 'argument', 'message'),
  [
    ('glue', 'gmm_prf', "unknown task behind the model, as in glue.py:gmm_prf,cola, ''"),
    ('glue', 'gmm_prf,listops', "'listops'; known: cola, mnli"),
    ('glue', 'gmm_prf,cola,lra', "unknown preset 'lra'; known: paper, tiny"),
  ],
)
def test_impossible_arguments(file, argument, message):
  with pytest.raises(ValueError, match=message):
    command_line.load(f'configs/{file}.py:{argument}')


def test_settings_of_the_paper():
  """Table 8; the schedules are those of section C.4."""
  pre = resolve(command_line.load('configs/wikitext.py:gmm_prf'))
  fine = resolve(command_line.load('configs/glue.py:gmm_prf,sst2'))
  for fields in (pre, fine):
    sizes = ('num_layers', 'num_heads', 'emb_dim', 'qkv_dim', 'mlp_dim', 'batch_size')
    assert [fields[name] for name in sizes] == [3, 10, 300, 640, 512, 64]
    assert (fields['adam_b2'], fields['weight_decay'], fields['dropout_rate']) == (0.999, 0.01, 0.1)
    assert fields['factors'] == 'constant * linear_warmup * linear_decay'
  assert (pre['objective'], pre['mask_rate'], pre['max_length']) == ('masked', 0.15, 511)
  assert (pre['learning_rate'], pre['warmup']) == (5e-4, 10_000)
  assert (fine['hidden_dim'], fine['activation'], fine['pooling_mode']) == (128, 'tanh', 'CLS')
  assert fine['num_train_steps'] == 10 * (67_349 // 64)
  assert fine['warmup'] == fine['num_train_steps'] // 10
  with pytest.raises(ValueError, match="wikitext has no labels: set objective='masked'"):
    resolve(command_line.load('configs/wikitext.py:gmm_prf', {'objective': 'classify'}))
  assert tasks.get_task('mrpc').metrics == ('accuracy', 'f1')
