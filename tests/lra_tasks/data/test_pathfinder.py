import json
import logging
import pathlib
import shutil
import signal
import subprocess
import sys

import ml_collections
import numpy as np
import PIL.Image
import pytest
from run_helpers import load_config

from lra_tasks import configuration
from lra_tasks.data import datasets, pathfinder, pathfinder_images
from lra_tasks.data.pathfinder import PathfinderData, is_benchmark, make_builder
from lra_tasks.tasks import get_task

SMALL = PathfinderData(num_train=30, num_valid=6, num_test=10)
ALL = PathfinderData()  # Of a release, all there is.
SIDES = (32, 64, 128, 256)


@pytest.fixture(scope='module')
def builder(tmp_path_factory):
  builder = make_builder(SMALL, resolution=32, data_dir=str(tmp_path_factory.mktemp('data')))
  datasets.prepare(builder)
  return builder


def write_release(root, num=20):
  """Write images in the layout of LRA's release: two directories, one empty file."""
  made = pathfinder_images.generate(pathfinder_images.parameters(32), 9, 0, num)
  directory = pathlib.Path(root) / 'pathfinder32/curv_contour_length_14'
  (directory / 'metadata').mkdir(parents=True)
  for k in range(2):
    (directory / f'imgs/{k}').mkdir(parents=True)
    rows = []
    for i in range(k * num // 2, (k + 1) * num // 2):
      PIL.Image.fromarray(made.pixels[i]).save(directory / f'imgs/{k}/sample_{i}.png')
      rows.append(f'imgs/{k} sample_{i}.png {i} {made.labels[i]} 1.0 14 4 2 0.5 1 1\n')
    (directory / f'metadata/{k}.npy').write_text(''.join(rows))
  (directory / 'imgs/0/sample_3.png').write_bytes(b'')
  return made


@pytest.fixture(scope='module')
def release(tmp_path_factory):
  root = tmp_path_factory.mktemp('release')
  write_release(root)
  return root


@pytest.fixture
def copy(release, tmp_path):
  """A copy to do harm to."""
  return pathlib.Path(shutil.copytree(release, tmp_path / 'copy'))


def is_empty(directory):
  return [p.name for p in pathlib.Path(directory).rglob('*') if p.is_file()] in ([], ['.lock'])


# Generated data.


def test_splits_hold_the_images_in_order(builder):
  params = pathfinder_images.parameters(32)
  made = pathfinder_images.generate(params, 0, 0, 46)
  start = 0
  for split, size in (('test', 10), ('validation', 6), ('train', 30)):
    source = builder.as_data_source(split)
    assert len(source) == size
    for i, record in enumerate(source):
      assert record['inputs'].dtype == np.uint8
      np.testing.assert_array_equal(record['inputs'], made.pixels[start + i].reshape(-1))
      assert record['target'] == made.labels[start + i]
    assert sum(int(record['target']) for record in source) == size // 2
    start += size


def test_the_name_encodes_what_determines_the_bytes(builder):
  name = lambda **fields: pathfinder.PathfinderConfig(**fields).name
  names = {
    name(), name(resolution=64), name(difficulty='easy'), name(data=PathfinderData(seed=1)),
    name(data=SMALL), name(directory='x', digest='1'), name(directory='x', digest='2'),
  }  # fmt: skip
  assert len(names) == 7
  assert name(data=PathfinderData(mask_zero=True)) == name()
  assert json.loads((builder.data_path / 'manifest.json').read_text())['split_rule']


def test_only_all_of_the_hard_images_are_the_benchmark(tmp_path):
  make = lambda data, **more: make_builder(data, resolution=32, data_dir=str(tmp_path), **more)
  assert is_benchmark(make(PathfinderData(seed=5, mask_zero=True)))
  assert not is_benchmark(make(SMALL))
  for difficulty, variant in (('easy', 'easy'), ('inter', 'inter'), ('hard', '')):
    builder = make(PathfinderData(), task_name=f'pathfinder32_{difficulty}')
    assert is_benchmark(builder) == (difficulty == 'hard')
    assert builder.variant == variant


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_train': 7}, 'num_train must be an even integer of at least 2, got 7'),
    ({'num_valid': 0}, 'num_valid must be an even'),
    ({'num_test': 2.0}, 'num_test must be an even'),
    ({'seed': -1}, 'seed must lie in 0'),
    ({'seed': 2**32}, r'seed must lie in 0 .. 2\*\*32 - 1, got 4294967296'),
    ({'seed': True}, 'seed must be an integer'),
    ({'mask_zero': 1}, 'mask_zero must be True or False'),
  ],
)
def test_impossible_options_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    PathfinderData(**fields)


def test_an_unknown_task_name_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"unknown task_name 'pathfinder32_hart' \(did you mean"):
    make_builder(SMALL, resolution=32, data_dir=str(tmp_path), task_name='pathfinder32_hart')


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, number):
  command = [
    sys.executable, '-m', 'lra_tasks.prepare', '--task=pathfinder64', f'--data_dir={tmp_path}'
  ]  # fmt: skip
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  for line in process.stderr:
    if 'preparing' in line:
      break
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + number, errors
  assert 'interrupted: nothing was prepared' in errors
  assert is_empty(tmp_path)


# LRA's release.


@pytest.mark.parametrize('inner', ['', 'pathfinder32'])
def test_a_release_is_read_as_it_is(release, tmp_path, inner, caplog):
  made = pathfinder_images.generate(pathfinder_images.parameters(32), 9, 0, 20)
  expected = {made.pixels[i].tobytes(): made.labels[i] for i in range(20) if i != 3}
  with caplog.at_level(logging.WARNING):
    builder = make_builder(ALL, resolution=32, data_dir=str(tmp_path), source=str(release / inner))
    datasets.prepare(builder)
  assert 'left out 1 empty images' in caplog.text
  found = {}
  for split, size in (('train', 15), ('validation', 2), ('test', 2)):
    source = builder.as_data_source(split)
    assert len(source) == size
    found |= {record['inputs'].tobytes(): record['target'] for record in source}
  assert found == expected
  assert not is_benchmark(builder)


def test_data_dir_is_looked_through_for_a_release(copy):
  builder = make_builder(ALL, resolution=32, data_dir=str(copy))
  assert builder.builder_config.directory
  other = make_builder(ALL, resolution=64, data_dir=str(copy))
  assert not other.builder_config.directory


def test_a_release_of_another_resolution_is_named(copy, tmp_path):
  def make(source):
    return make_builder(ALL, resolution=64, data_dir=str(tmp_path / 'data'), source=str(source))

  for source in (copy, copy / 'pathfinder32', f'{copy}/pathfinder32/'):
    with pytest.raises(FileNotFoundError, match='holds no pathfinder64/curv_contour_length_14'):
      make(source)
  (copy / 'pathfinder32').rename(copy / 'images')
  with pytest.raises(
    ValueError, match='64 x 64 .*, found 32 x 32, mode L; these are images of 32 x 32: use --task='
  ):
    datasets.prepare(make(copy / 'images'))


def test_the_order_mixes_the_directories_by_seed(release):
  samples = pathfinder.read_release(str(release / 'pathfinder32/curv_contour_length_14'))
  train = lambda seed: pathfinder.split_release(samples, PathfinderData(seed=seed))['train']
  assert train(0) == train(0) != train(1)
  folders = [pathlib.Path(sample.path).parent.name for sample in train(0)]
  assert sorted(folders) not in (folders, folders[::-1])


def test_of_a_release_fewer_images_are_the_first_ones(release, tmp_path):
  def images(**sizes):
    data = PathfinderData(**sizes)
    builder = make_builder(data, resolution=32, data_dir=str(tmp_path), source=str(release))
    datasets.prepare(builder)
    assert not is_benchmark(builder)
    parts = {
      split: [record['inputs'].tobytes() for record in builder.as_data_source(split)]
      for split in ('train', 'validation', 'test')
    }
    return builder.builder_config.name, parts

  name, everything = images()
  fewer_name, fewer = images(num_train=6)
  assert fewer == everything | {'train': everything['train'][:6]}
  assert fewer_name == name.replace('_s0', '_6_all_all_s0')
  with pytest.raises(ValueError, match=r'num_valid=4 is more than the 2 images .* 20000 for all'):
    images(num_valid=4)


def test_other_files_have_another_name(copy, tmp_path):
  make = lambda: make_builder(ALL, resolution=32, data_dir=str(tmp_path), source=str(copy))
  directory = copy / 'pathfinder32/curv_contour_length_14'
  names = [make().builder_config.name, make().builder_config.name]
  PIL.Image.fromarray(np.full((32, 32), 7, np.uint8)).save(directory / 'imgs/0/sample_0.png')
  names.append(make().builder_config.name)
  metadata = directory / 'metadata/1.npy'
  metadata.write_text(metadata.read_text().replace(' 14 ', ' 15 ', 1))
  names.append(make().builder_config.name)
  shutil.move(directory / 'imgs/1/sample_12.png', directory / 'imgs/1/sample_99.png')
  metadata.write_text(metadata.read_text().replace('sample_12.png', 'sample_99.png'))
  names.append(make().builder_config.name)
  assert names[0] == names[1]
  assert len(set(names)) == 4


def harm(copy, kind):
  directory = copy / 'pathfinder32/curv_contour_length_14'
  metadata, image = directory / 'metadata/1.npy', directory / 'imgs/1/sample_12.png'
  lines = metadata.read_text().splitlines()
  if kind == 'columns':
    lines[2] = 'imgs/1 sample_12.png'
  elif kind == 'label':
    lines[2] = lines[2].replace(lines[2].split()[3] + ' 1.0', '2 1.0')
  elif kind == 'binary':
    metadata.write_bytes(b'\x93NUMPY\x01\x00')
    return
  elif kind == 'missing':
    image.unlink()
  elif kind == 'no metadata':
    for file in (directory / 'metadata').iterdir():
      file.unlink()
    return
  elif kind == 'size':
    PIL.Image.fromarray(np.zeros((33, 32), np.uint8)).save(image)
  elif kind == 'colours':
    PIL.Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
  elif kind == 'truncated':
    image.write_bytes(image.read_bytes()[:-40])
  elif kind == 'no image':
    image.write_bytes(b'no image')
  metadata.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize(
  ('kind', 'message'),
  [
    ('columns', r'1\.npy, line 3: expected 4 or more columns .*, found 2; unpack'),
    ('label', r"1\.npy, line 3: expected label 0 or 1 in column 4, found '2'; unpack"),
    ('binary', r'1\.npy, line 1: expected text, found'),
    ('missing', r'1\.npy, line 3: its image .*sample_12\.png is missing; unpack'),
    ('no metadata', r'metadata holds no files \*\.npy'),
    (
      'size',
      r'line 3: .*sample_12\.png: expected a grey image of 32 x 32 .* found 32 x 33, mode L',
    ),
    ('colours', r'sample_12\.png: expected a grey image .* found 32 x 32, mode RGB; unpack'),
    ('truncated', r'sample_12\.png: expected a grey image .* no image that can be decoded'),
    ('no image', r'sample_12\.png: expected a grey image .* no image that can be decoded'),
  ],
)
def test_a_damaged_release_is_named_and_leaves_nothing(copy, tmp_path, kind, message):
  harm(copy, kind)
  data_dir = tmp_path / 'data'
  with pytest.raises(ValueError, match=message):
    datasets.prepare(make_builder(ALL, resolution=32, data_dir=str(data_dir), source=str(copy)))
  assert is_empty(data_dir)


def test_a_source_without_images_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no pathfinder32/curv_contour_length_14'):
    make_builder(ALL, resolution=32, data_dir=str(tmp_path), source=str(tmp_path))


# Tasks and configs.


@pytest.mark.parametrize('side', SIDES)
def test_tasks_know_their_images(side):
  spec = get_task(f'pathfinder{side}')
  assert spec.tokenizer.num_pixels == spec.base_model['max_length'] == side**2
  fields = configuration.resolve(configuration.new_config(spec.name, 'gmm_prf', 'lra'))
  sizes = {'num_train': 160_000, 'num_valid': 20_000, 'num_test': 20_000}
  assert fields['data'] == sizes | {'seed': 0, 'mask_zero': False}


@pytest.mark.parametrize('side', SIDES)
def test_configs_resolve(side):
  task = f'pathfinder{side}'
  for preset in ('lra', 'tuned', 'tiny'):
    fields = configuration.resolve(load_config(task, f'gmm_prf,{preset}'))
    assert fields['preset'] == preset
    assert fields['max_length'] == side**2
  fields = configuration.resolve(load_config(task, 'transformer'))
  base = configuration.base_model_arguments({'task': task})
  ours = configuration.model_arguments(fields)
  assert base.items() <= (ours | {'pooling': fields['pooling_mode']}).items()


@pytest.mark.parametrize(
  ('side', 'batch_size', 'warmup', 'steps', 'dropout_rate', 'clip', 'sizes', 'pooling', 'learned'),
  [
    (32, 512, 312, 62_400, 0.2, 0.0, (4, 32, 4, 16, 32), 'MEAN', False),
    (64, 256, 625, 125_000, 0.1, 0.0, (2, 32, 4, 32, 32), 'CLS', True),
    (128, 64, 2500, 500_000, 0.1, 1.0, (1, 32, 2, 16, 32), 'MEAN', True),
    (256, 32, 5000, 500_000, 0.1, 0.0, (2, 32, 4, 32, 32), 'CLS', True),
  ],
)
def test_lra_preset_has_the_figures_of_lras_transformer(
  side, batch_size, warmup, steps, dropout_rate, clip, sizes, pooling, learned
):
  fields = configuration.resolve(load_config(f'pathfinder{side}', 'transformer'))
  names = ('num_layers', 'emb_dim', 'num_heads', 'qkv_dim', 'mlp_dim')
  expected = dict(zip(names, sizes, strict=True)) | {
    'preset': 'lra', 'batch_size': batch_size, 'learning_rate': 1e-3, 'warmup': warmup,
    'num_train_steps': steps, 'steps_per_cycle': steps, 'eval_frequency': warmup,
    'factors': 'constant * linear_warmup * cosine_decay', 'weight_decay': 0.0,
    'grad_clip_norm': clip, 'dropout_rate': dropout_rate, 'attention_dropout_rate': 0.1,
    'pooling_mode': pooling, 'learn_pos_emb': learned, 'max_length': side**2,
  }  # fmt: skip
  assert {name: fields[name] for name in expected} == expected


def test_lra_files_for_pathfinder_resolve():
  """A config in the form of LRA's image/configs/pathfinder32/linear_transformer_base.py."""
  config = ml_collections.ConfigDict(
    {
      'model_type': 'linear_transformer', 'batch_size': 512, 'eval_frequency': 312,
      'num_train_steps': 62400, 'num_eval_steps': 39, 'weight_decay': 0.0, 'grad_clip_norm': None,
      'learning_rate': 0.001, 'factors': 'constant * linear_warmup * cosine_decay', 'warmup': 312,
      'steps_per_cycle': 62400, 'checkpoint_freq': 31200, 'random_seed': 0, 'trial': 0,
      'save_checkpoints': True, 'restore_checkpoints': True,
      'model': {
        'num_layers': 1, 'num_heads': 2, 'emb_dim': 128, 'dropout_rate': 0.2, 'qkv_dim': 64,
        'mlp_dim': 128, 'attention_dropout_rate': 0.1, 'classifier_pool': 'MEAN',
        'learn_pos_emb': False,
      },
    }
  )  # fmt: skip
  theirs = configuration.resolve(config, 'pathfinder32')
  ours = configuration.resolve(load_config('pathfinder32', 'linear_transformer'))
  differing = {line.split(':')[0] for line in configuration.difference(ours, theirs)}
  assert differing == {'checkpoint_freq', 'num_eval_steps'}
