import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from run_helpers import ROOT

from kl_flax.kernels import KernelInfo
from lra_tasks import benchmark, configuration
from lra_tasks.benchmark import render, render_cases
from lra_tasks.speed import cases as speed
from lra_tasks.speed import input as speed_input
from lra_tasks.speed import timing as speed_timing
from lra_tasks.speed.cases import Case
from lra_tasks.speed.timing import Machine, Quantity

# Of ml_collections, which reads config files with it.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')

FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures/text/aclImdb_short.tar.gz'
TEXT = f'--config={ROOT}/configs/text.py'
TINY = f'{TEXT}:gmm_prf,tiny'
SHORT = ['--repetitions=2', '--seconds=0.01']
MACHINE = Machine('a machine', 1e9, 1e9, 'float32')


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch):
  monkeypatch.setattr(benchmark, 'set_up_logging', lambda: None)
  monkeypatch.setattr(benchmark, 'measure_machine', lambda: MACHINE)


def parse(*arguments):
  values = flags.FlagValues()
  benchmark.define_flags(values)
  return values(['benchmark', *arguments]), values


def run(capsys, *arguments):
  """Exit code, output and errors of the command with these arguments."""
  code = benchmark.main(*parse(*arguments))
  return code, *capsys.readouterr()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


def test_the_input_pipeline_is_measured(capsys, data):
  where = [f'--source={FIXTURE}', f'--data_dir={data}', f'--out={data}/speed.json']
  code, out, err = run(capsys, '--what=input', TINY, *where, *SHORT)
  assert code == 0, err
  assert 'text/imdb_reviews_80_40_s0_' in out
  assert '72 examples, batches of 16 × 128' in out
  result = json.loads((data / 'speed.json').read_text())
  assert (result['what'], result['configs'][0]['preset']) == ('input', 'tiny')
  found = {quantity['name']: quantity for quantity in result['cases'][0]['quantities']}
  for name, quantity in found.items():
    assert name in out
    assert len(quantity['values']) == 2
    assert 0 <= quantity['min'] <= quantity['median'] <= quantity['max']
  batches, examples, arrays = (found[n]['median'] for n in ('batches', 'examples', 'arrays'))
  assert examples == pytest.approx(16 * batches)
  size = 16 * (128 * 4 + 4 * 4)  # Tokens; length, label, weight and whether it was cut.
  assert arrays == pytest.approx(batches * size / 1e6)


def cases_of(path):
  result = json.loads(path.read_text())
  return result, [(case, {q['name']: q for q in case['quantities']}) for case in result['cases']]


def test_attention_alone_is_measured(capsys, tmp_path):
  out_file = tmp_path / 'op.json'
  sizes = ['--models=gmm_prf,gmm_rks,transformer', '--lengths=16,32', '--tokens=64']
  code, out, err = run(capsys, '--what=op', TINY, *sizes, *SHORT, f'--out={out_file}')
  assert code == 0, err
  result, cases = cases_of(out_file)
  assert result['machine'] == MACHINE._asdict()
  labels = [(c['model_type'], c['max_length'], c['batch_size'], c.get('program')) for c, _ in cases]
  assert labels == [
    ('gmm_prf', 16, 4, 'xla'),
    ('gmm_rks', 16, 4, 'xla'),
    ('transformer', 16, 4, None),
    ('gmm_prf', 32, 2, 'xla'),
    ('gmm_rks', 32, 2, 'xla'),
    ('transformer', 32, 2, None),
  ]
  assert [c.get('num_frequencies') for c, _ in cases[:3]] == [16, 16, None]
  for _, found in cases:
    forward, both = found['forward'], found['forward + backward']
    assert len(forward['values']) == len(both['values']) == 2
    assert 0 < forward['median'] < 1000
    # 64 positions of 32 numbers of 4 bytes: read or written 4 times, 8 with gradients.
    assert found['forward, floor']['median'] == pytest.approx(4 * 64 * 32 * 4 / 1e9 * 1e3)
    assert found['forward + backward, floor']['median'] == pytest.approx(
      8 * 64 * 32 * 4 / 1e9 * 1e3
    )
    more = 'forward + backward, temporary memory'
    assert found[more]['median'] >= found['forward, temporary memory']['median'] >= 0
  assert 'attention alone, 2 heads of 16' in out
  assert '× softmax' in out


def test_the_operation_is_that_of_the_model():
  """What is measured returns what the mechanism of the model returns, with its own options."""
  _, values = parse(TINY, '--models=gmm_rks', '--num_frequencies=8')
  (fields,) = benchmark.configs(values)
  fields |= {'dtype': 'float32', 'attention': fields['attention'] | {'smoothing': 0.36}}
  x = [jax.random.normal(jax.random.key(i), (2, 8, 2, 16)) for i in range(3)]
  attend, (omega, log_weight) = speed._operation(fields, 2, 16)
  assert (omega.shape, log_weight) == ((2, 8, 16), None)
  sampler = speed._attention(fields).sampler.clone(parent=None, name=None)
  rngs = {'params': jax.random.key(1), 'spectral': jax.random.key(2)}
  drawn, _ = sampler.init_with_output(rngs, 2, 16)
  np.testing.assert_array_equal(drawn, omega)
  expected = speed.kernel_attention(*x, omega, features='fourier', smoothing=0.36)
  np.testing.assert_array_equal(attend((omega, None), *x), expected)


def test_training_steps_are_measured(capsys, tmp_path):
  out_file = tmp_path / 'step.json'
  models = ['--models=fastfood_prf', '--lengths=24', '--batch_sizes=2']
  code, out, err = run(capsys, TINY, *models, *SHORT, f'--out={out_file}')
  assert code == 0, err
  _, cases = cases_of(out_file)
  assert [c['model_type'] for c, _ in cases] == ['fastfood_prf']
  for case, found in cases:
    assert (case['batch_size'], case['max_length'], case['sizes']['num_layers']) == (2, 24, 1)
    times, examples = (np.array(found[name]['values']) for name in ('step', 'examples'))
    np.testing.assert_allclose(examples, 2e3 / times)
    assert found['step, whole memory']['median'] > found['step, temporary memory']['median'] > 0
    floor = max(found['step, memory traffic']['median'], 1e3 * found['step, operations']['median'])
    assert found['step, floor']['median'] == pytest.approx(1e3 * floor)
  assert f'training steps of text, {jax.device_count()} x cpu' in out


def test_batches_to_predict_masked_ids_from():
  fields = {'objective': 'masked', 'max_length': 40, 'batch_size': 3, 'mask_rate': 0.2}
  for task, vocab_size in (('wikitext', 30_522), ('listops', 16)):
    config = {'task': task, 'random_seed': 0} | fields
    batch = speed.random_batch(configuration.DEFAULTS | config)
    assert batch['positions'].shape == batch['weights'].shape == (3, 8)
    assert np.sum(batch['inputs'] == vocab_size) > 0


def test_models_without_labels_predict_none(capsys):
  arguments = ['--what=inference', '--config=configs/wikitext.py:linear_transformer,tiny', *SHORT]
  code, _, err = run(capsys, *arguments)
  assert code == 1
  assert "is about classifiers, and the config's objective is masked" in err


def test_predictions_are_measured(capsys, tmp_path):
  out_file = tmp_path / 'inference.json'
  sizes = ['--batch_sizes=1,3', '--lengths=40']
  code, out, err = run(capsys, '--what=inference', TINY, *sizes, *SHORT, f'--out={out_file}')
  assert code == 0, err
  _, cases = cases_of(out_file)
  assert [case['batch_size'] for case, _ in cases] == [1, 3]
  for _, found in cases:
    assert len(found['documents']['values']) >= 10
    assert found['latency, p99']['median'] >= found['latency, p50']['median'] > 0
  assert 'p99 ms' in out


@pytest.mark.slow
def test_pairs_are_measured_too(capsys):
  config = f'--config={ROOT}/configs/retrieval.py:gmm_prf,tiny'
  sizes = ['--lengths=24', '--batch_sizes=2', *SHORT]
  assert run(capsys, '--what=inference', config, *sizes)[0] == 0
  assert run(capsys, '--what=step', config, *sizes)[0] == 0


def test_what_does_not_fit_into_memory_is_a_row(capsys, monkeypatch):
  def fail(*_, **__):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to ...')

  monkeypatch.setattr(speed, 'compile_program', fail)
  code, out, _ = run(capsys, '--what=op', TINY, '--lengths=8', *SHORT)
  assert code == 0
  assert out.splitlines()[-1].endswith('out of memory')
  monkeypatch.setattr(speed, 'is_out_of_memory', lambda _: False)
  with pytest.raises(jax.errors.JaxRuntimeError):
    run(capsys, '--what=op', TINY, '--lengths=8', *SHORT)


def test_models_take_the_same_preset_and_changes(monkeypatch):
  changes = ['--config.emb_dim=48', '--config.attention.tied=False', '--num_frequencies=24']
  arguments = [TINY, '--models=gmm_prf,transformer,performer', *changes]
  monkeypatch.setattr('sys.argv', ['benchmark', *arguments])  # Read by ml_collections.
  _, values = parse(*arguments)
  found = {fields['model_type']: fields for fields in benchmark.configs(values)}
  assert list(found) == ['gmm_prf', 'transformer', 'performer']
  assert {fields['emb_dim'] for fields in found.values()} == {48}
  assert {fields['batch_size'] for fields in found.values()} == {16}  # The preset tiny.
  assert [f['attention'].get('num_frequencies') for f in found.values()] == [24, None, 24]
  assert [f['attention'].get('tied') for f in found.values()] == [False, None, None]


def test_implementations_are_compared_where_there_are_several():
  _, values = parse(TINY, '--models=gmm_prf,transformer', '--implementations=auto,xla')
  found = [
    (f['model_type'], f['attention'].get('implementation')) for f in benchmark.configs(values)
  ]
  assert found == [('gmm_prf', 'auto'), ('gmm_prf', 'xla'), ('transformer', None)]


def test_models_without_a_preset_take_that_of_the_first():
  _, values = parse(f'--config={ROOT}/configs/listops.py:gmm_prf', '--models=gmm_prf,transformer')
  found = benchmark.configs(values)
  assert [f['preset'] for f in found] == ['paper', 'paper']
  assert len({f['num_layers'] for f in found}) == 1


def test_lras_base_config_is_the_default():
  _, values = parse('--task=text', '--models=transformer,linear_transformer')
  found = benchmark.configs(values)
  assert [f['model_type'] for f in found] == ['transformer', 'linear_transformer']
  assert {(f['batch_size'], f['max_length']) for f in found} == {(32, 1000)}


def test_tables_show_median_and_spread():
  quantities = [Quantity('batches', '1/s', (1500.0, 30.0, 0.012)), Quantity('load', '', (2.0,))]
  assert render('title', ['note'], quantities).splitlines() == [
    'title',
    'note',
    '',
    '         median    min    max',
    '──────────────────────────────────',
    'batches      30  0.012  1,500  1/s',
    'load          2      2      2',
  ]


def test_tables_of_cases_compare_with_softmax_and_the_floor():
  def case(model, length, note='', **values):
    labels = {'model_type': model, 'max_length': length, 'batch_size': 2, 'dtype': 'float32'}
    labels['sizes'] = {'num_layers': 1}
    return Case(labels, tuple(Quantity(n, 'ms', v) for n, v in values.items()), note)

  cases = [
    case('gmm_prf', 8, forward=(2.0, 1.8, 2.2), **{'forward, floor': (0.5,)}),
    case('transformer', 8, forward=(5.0,)),
    case('gmm_prf', 9, 'out of memory'),
  ]
  columns = benchmark.KINDS['op'].columns
  lines = render_cases('title', [], cases, columns).splitlines()[2:]
  assert [line.split() for line in lines if '─' not in line] == [
    ['model', 'length', 'batch', 'dtype', 'forward', 'ms', '±', '×', 'softmax', '×', 'floor'],
    ['gmm_prf', '8', '2', 'float32', '2', '10', '%', '2.50', '4.00'],
    ['transformer', '8', '2', 'float32', '5', '0', '%', '1.00'],
    ['gmm_prf', '9', '2', 'float32', 'out', 'of', 'memory'],
  ]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'the config names no task: pass --task'),
    (['--task=txt'], "unknown task 'txt' (did you mean 'text'"),
    ([TINY, 'x'], 'unknown arguments: x'),
    ([TINY, '--repetitions=0'], 'repetitions must be at least 1 and seconds above 0, got 0 and'),
    ([TINY, '--seconds=0'], 'seconds above 0, got 5 and 0.0'),
    ([TINY, '--source=/nowhere'], '/nowhere holds neither a directory aclImdb'),
    (['--task=text', f'--source={FIXTURE}'], 'train/pos: expected 12500 reviews, found 40'),
    ([TINY, '--models=gmm_prv'], "unknown model_type 'gmm_prv' (did you mean 'gmm_prf'"),
    ([TINY, '--lengths=0,8'], 'lengths must be at least 1, got 0, 8'),
    ([TINY, '--tokens=-1'], 'tokens must be at least 1, got -1'),
    ([TINY, '--dtypes=float64'], "dtypes must be 'float32' or 'bfloat16', got 'float64'"),
    ([TINY, '--what=op', '--implementations=fused'], "implementation='fused' cannot run here"),
    ([TINY, '--what=op', '--implementations=fast'], 'implementation must be one of'),
  ],
)
def test_errors_are_one_line(capsys, data, arguments, message):
  what = [] if any('--what' in a for a in arguments) else ['--what=input']
  code, out, err = run(capsys, f'--data_dir={data}', *what, *arguments)
  assert (code, out) == (1, '')
  assert message in err
  assert err.startswith('error: ')


def test_memory_is_counted_from_now_on():
  before = speed_input._reset_peak_memory()
  if before is None:
    pytest.skip('this system has no such counter')
  block = bytearray(50_000_000)
  assert speed_input._peak_memory() - before > 45_000_000
  del block
  assert speed_input._reset_peak_memory() < before + 45_000_000


def test_random_batches_have_the_pipelines_form():
  _, values = parse(TINY)
  (fields,) = benchmark.configs(values)
  batch = speed.random_batch(fields)
  assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
    'inputs': ((16, 128), 'int32'),
    'lengths': ((16,), 'int32'),
    'targets': ((16,), 'int32'),
    'weights': ((16,), 'float32'),
    'truncated': ((16,), 'float32'),
  }
  valid = np.arange(128) < batch['lengths'][:, None]
  assert np.all((batch['inputs'] > 0) == valid)
  assert 32 <= batch['lengths'].min() <= batch['lengths'].max() <= 128


def test_times_are_those_of_one_call():
  """A call that takes twice as long is found to take twice as long, within a factor."""
  pause = lambda seconds: lambda: speed_timing.time.sleep(seconds) or jnp.zeros(())
  short, long = (
    min(speed_timing.time_loop(pause(s), repetitions=3, seconds=0.05)) for s in (0.005, 0.02)
  )
  assert 0.005 <= short < 0.015
  assert 0.02 <= long < 0.04


def test_the_machine_is_measured():
  machine = speed_timing.measure_machine(repetitions=1)
  assert machine.bandwidth > 1e8
  assert machine.matrix_rate > 1e9
  assert machine.floor(machine.bandwidth) == pytest.approx(1)
  assert machine.floor(0, 3 * machine.matrix_rate) == pytest.approx(3)


def test_compiled_programs_tell_their_cost():
  program = speed_timing.compile_program(jax.jit(jnp.matmul), *[jnp.ones((64, 64))] * 2)
  assert program.operations == pytest.approx(2 * 64**3, rel=0.1)
  assert program.traffic_bytes == pytest.approx(3 * 64 * 64 * 4, rel=0.1)
  assert program.all_bytes >= 3 * 64 * 64 * 4
  assert program.seconds > 0


def test_program_is_that_of_kernel_info(monkeypatch):
  seen = []

  def info(*arrays, **options):
    seen.append(([x.shape for x in arrays], options))
    return KernelInfo('fused', '')

  monkeypatch.setattr(speed, 'kernel_info', info)
  _, values = parse(TINY)
  (fields,) = benchmark.configs(values)
  labels = speed.labels_of(fields | {'dtype': 'float32'})
  assert (labels['program'], labels['num_frequencies']) == ('fused', 16)
  ((arrays, options),) = seen
  assert arrays == [*[(16, 128, 2, 16)] * 3, (2, 16, 16)]
  assert options == {
    'features': 'positive', 'smoothing': 0.0, 'causal': False, 'implementation': 'auto',
  }  # fmt: skip


def test_implementations_that_are_one_program_are_measured_once(capsys):
  code, out, _ = run(
    capsys, '--what=op', TINY, '--implementations=auto,xla,fused', '--lengths=8', *SHORT
  )
  assert code == 0
  rows = [line.split()[:2] for line in out.splitlines() if line.startswith('gmm_prf')]
  assert rows == [['gmm_prf', 'xla'], ['gmm_prf', '8']]  # The second has no program.
  assert "implementation='fused' cannot run here" in out.splitlines()[-1]


def test_a_file_that_cannot_be_written_is_told_before(capsys, tmp_path):
  code, _, err = run(capsys, '--what=op', TINY, f'--out={tmp_path}/none/x.json', *SHORT)
  assert (code, 'its directory does not exist' in err) == (1, True)


def test_what_was_measured_is_kept_when_the_command_dies(monkeypatch, tmp_path):
  original, calls = speed._measure_op, []

  def measure(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return original(*arguments, **options)

  monkeypatch.setattr(speed, '_measure_op', measure)
  out = tmp_path / 'op.json'
  arguments = ['--what=op', TINY, '--lengths=8,16', f'--out={out}', *SHORT]
  assert benchmark.main(*parse(*arguments)) == 130
  assert [case['max_length'] for case in json.loads(out.read_text())['cases']] == [8]
