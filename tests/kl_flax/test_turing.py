import dataclasses
import functools
import itertools
import math
import re
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kl_flax.features import fourier_features, positive_features
from kl_flax.turing import (
  MAX_STEPS,
  AttentionMachine,
  TuringMachine,
  gaussian_attention,
  hard_attention,
  simulate,
)


def make_machine(rules, symbols, initial, final, blank='_'):
  """Return the machine of these rules; what they leave out leads to the state 'stuck'."""
  final = frozenset(final) | {'stuck'}
  rules = {tuple(key.split()): (q, s, int(m)) for key, q, s, m in (rule for rule in rules)}
  states = tuple(dict.fromkeys([q for q, _ in rules] + sorted(final)))
  missing = itertools.product((q for q in states if q not in final), symbols)
  rules = {pair: ('stuck', pair[1], 1) for pair in missing} | rules
  return TuringMachine(states, tuple(symbols), blank, rules, initial, final)


def parse(text):
  """Return rules from lines 'state symbols: next written move'; '=' keeps the symbol."""
  for line in filter(None, map(str.strip, text.splitlines())):
    left, right = line.split(': ')
    state, symbols = left.split()
    following, written, move = right.split()
    for symbol in symbols:
      yield f'{state} {symbol}', following, symbol if written == '=' else written, move


INCREMENT = make_machine(parse('carry 1: carry 0 -1\ncarry 0: done 1 1'), '01_', 'carry', ['done'])
# The first symbol is a wall '$'; what was compared is 'x' on the left and blank on the right.
PALINDROME = make_machine(
  parse("""
    last 0: seek0 _ -1
    last 1: seek1 _ -1
    last x$: yes = 1
    seek0 01: seek0 = -1
    seek1 01: seek1 = -1
    seek0 x$: match0 = 1
    seek1 x$: match1 = 1
    match0 0: back x 1
    match1 1: back x 1
    match0 1: no = 1
    match1 0: no = 1
    match0 _: yes = 1
    match1 _: yes = 1
    back 01: back = 1
    back _: last = -1
  """),
  '01_x$',
  'last',
  ['yes', 'no'],
)
ADDITION = make_machine(
  parse('take 1: seek _ -1\ntake +: done _ 1\nseek 1: seek = -1\nseek +: done 1 1'),
  '1+_',
  'take',
  ['done'],
)
# Both champions go left of where they start: first, one step to the right.
ONES = make_machine(  # 6 ones, 14 steps.
  parse("""
    go 0: A = 1
    A 0: B 1 1
    A 1: H 1 1
    B 0: C 0 1
    B 1: B 1 1
    C 0: C 1 -1
    C 1: A 1 -1
  """),
  '01',
  'go',
  ['H'],
  blank='0',
)
SHIFTS = make_machine(  # 21 steps, 5 ones.
  parse("""
    go 0: go2 = 1
    go2 0: A = 1
    A 0: B 1 1
    A 1: H 1 1
    B 0: B 1 -1
    B 1: C 0 1
    C 0: C 1 -1
    C 1: A 1 -1
  """),
  '01',
  'go',
  ['H'],
  blank='0',
)
# To and fro between a wall and an end that is one cell further each time; never halts.
SWEEP = make_machine(
  parse('out $1: out = 1\nout _: home 1 -1\nhome 1: home = -1\nhome $: out = 1'), '$1_', 'out', []
)


def outcome(function, *arguments):
  try:
    return function(*arguments)
  except ValueError as error:
    return str(error)


def run_both(machine, tape, max_steps=400):
  run = AttentionMachine(machine).run(tape, max_steps)
  assert run == simulate(machine, tape, max_steps)
  return run


def test_binary_increment():
  for number in (0, 1, 2, 5, 7, 11, 31):
    run = run_both(INCREMENT, f'0{number:b}')
    assert run.halted
    assert int(''.join(run.tape), 2) == number + 1
  assert run.steps[0] == ('carry', '1', 5)
  assert run.steps[-1] == ('done', '0', 1)


def test_palindromes_are_accepted_and_others_rejected():
  transformer = AttentionMachine(PALINDROME)
  for length in range(6):
    for word in itertools.product('01', repeat=length):
      run = transformer.run(('$', *word), 60)
      assert run == simulate(PALINDROME, ('$', *word), 60)
      assert run.steps[-1].state == ('yes' if word == word[::-1] else 'no')


def test_unary_addition():
  for a, b in itertools.product(range(4), repeat=2):
    run = run_both(ADDITION, '1' * a + '+' + '1' * b)
    assert run.steps[-1].state == 'done'
    assert run.tape == ('1',) * (a + b)


@pytest.mark.parametrize(
  ('machine', 'lead', 'steps', 'ones'), [(ONES, 1, 14, 6), (SHIFTS, 2, 21, 5)]
)
def test_busy_beavers_of_three_states_start_on_an_empty_tape(machine, lead, steps, ones):
  run = run_both(machine, '')
  assert run.halted
  assert len(run.steps) - 1 == lead + steps
  assert run.tape.count('1') == ones


def test_a_long_run_is_exact_and_stops_at_the_limit():
  run = run_both(SWEEP, '$', 1000)
  assert not run.halted
  assert len(run.steps) == 1001
  assert run_both(SWEEP, '$', 0).steps == (('out', '$', 0),)
  assert run_both(SWEEP, '$', 40).steps == run.steps[:41]


@st.composite
def machines(draw):
  states = tuple('ABCD'[: draw(st.integers(1, 4))])
  symbols = tuple('_01'[: draw(st.integers(1, 3))])
  action = st.tuples(
    st.sampled_from((*states, 'H')),
    st.sampled_from(symbols),
    st.sampled_from((1, 1, -1)),  # Half of all machines would leave the tape at once.
  )
  table = {pair: draw(action) for pair in itertools.product(states, symbols)}
  initial = draw(st.sampled_from((*states, 'H')))
  tape = draw(st.lists(st.sampled_from(symbols[1:]), max_size=6)) if symbols[1:] else []
  return ((*states, 'H'), symbols, '_', table, initial, frozenset('H')), tape


@given(case=machines(), max_steps=st.integers(0, 40))
@settings(max_examples=100)
def test_random_machines_have_the_trace_or_the_error_of_the_direct_simulation(case, max_steps):
  parts, tape = case
  machine = TuringMachine(*parts)
  transformer = AttentionMachine(machine)
  assert outcome(transformer.run, tape, max_steps) == outcome(simulate, machine, tape, max_steps)


def test_the_program_is_in_the_weights_of_the_look_up():
  action = lambda written: {('A', '1'): ('A', written, -1), ('A', '_'): ('H', '1', 1)}
  keep, erase = (
    TuringMachine(('A', 'H'), ('1', '_'), '_', action(w), 'A', frozenset('H')) for w in '1_'
  )
  transformer = AttentionMachine(keep)
  transformer.look_up = AttentionMachine(erase).look_up
  assert transformer.run('111', 2) == simulate(erase, '111', 2) != simulate(keep, '111', 2)


@pytest.mark.parametrize('tape', ['', '$011'])
def test_vectors_of_both_layers_are_what_the_invariant_says(tape):
  transformer, table = AttentionMachine(PALINDROME), PALINDROME.transitions
  states, letters = PALINDROME.states, '01x$'
  assert transformer.size == 2 * len(states) + 3 * len(letters) + 12
  one_hot = lambda names, name: [float(n == name) for n in names]

  steps = simulate(PALINDROME, tape, 100).steps
  # q(i+1), s(i+1), m(i), c(i+1), v(i); the first rows copy the input.
  rows = [(None, '_', 1, cell + 1, symbol) for cell, symbol in enumerate(tape)]
  rows.append((*steps[0][:2], -1 if tape else 0, steps[0].head, '_'))
  for step, following in itertools.pairwise(steps):
    _, written, move = table[step.state, step.symbol]
    rows.append((*following[:2], move, following.head, written))

  last_move = 0
  for i, (z, y) in enumerate(transformer.outputs(tape, len(rows))):
    state, symbol, move, cell, written = rows[i]
    first = [*one_hot(states, state), *one_hot(letters, symbol), move, cell]
    np.testing.assert_array_equal(y, np.pad(first, (0, transformer.size - len(first))))
    eq24 = [0] * (len(states) + len(letters) + 1) + [cell]
    eq24 += [*one_hot(states, state), *one_hot(letters, written), move, last_move, 0, 0]
    eq24 += [min(i + 1, len(tape) + 1), *one_hot(letters, None), 0]
    eq24 += [1, i + 1, 1 / (i + 1), 1 / (i + 1) ** 2]
    np.testing.assert_array_equal(z, eq24)
    last_move = move


def test_leaving_the_tape_is_an_error_that_names_the_step():
  machine = make_machine(parse('A 1: B 1 1\nB _: A 1 -1\nA _: A 1 1'), '1_', 'A', [])
  machine = dataclasses.replace(
    machine, transitions={**machine.transitions, ('A', '1'): ('A', '1', -1)}
  )
  for run in (functools.partial(simulate, machine), AttentionMachine(machine).run):
    assert not run('111', 2).halted
    message = "step 2 moves the head left of the leftmost cell (state 'A', symbol '1')"
    with pytest.raises(ValueError, match=re.escape(message)):
      run('111', 3)


VALID = {
  'states': ('A', 'H'),
  'symbols': ('1', '_'),
  'blank': '_',
  'transitions': {('A', '1'): ('A', '1', 1), ('A', '_'): ('H', '1', -1)},
  'initial': 'A',
  'final': frozenset('H'),
}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'states': ('A', 'H', 'A')}, 'a state is named twice: A, H, A'),
    ({'symbols': ('1', '_', '1')}, 'a symbol is named twice'),
    ({'blank': '0'}, "unknown symbol '0'"),
    ({'initial': 'B'}, "unknown state 'B'"),
    ({'final': frozenset('X')}, "unknown state 'X'"),
    ({'transitions': {('A', '1'): ('A', '1', 1)}}, "no transition for ('A', '_')"),
    ({'transitions': {('A', '1'): ('B', '1', 1)}}, "unknown state 'B'"),
    ({'transitions': {('A', '1'): ('A', '2', 1)}}, "unknown symbol '2'"),
    ({'transitions': {('A', '1'): ('A', '1', 0)}}, 'it must be -1 or 1'),
    ({'transitions': {('H', '1'): ('A', '1', 1)}}, "the final state 'H' has a transition"),
  ],
)
def test_malformed_machines_are_refused(changes, message):
  TuringMachine(**VALID)
  with pytest.raises(ValueError, match=re.escape(message)):
    TuringMachine(**VALID | changes)


@pytest.mark.parametrize(
  ('tape', 'max_steps', 'message'),
  [
    ('1_1', 5, 'cell 1 of the input is blank'),
    ('12', 5, "unknown symbol '2'"),
    ('1', -1, 'max_steps is -1'),
  ],
)
def test_malformed_tapes_are_refused(tape, max_steps, message):
  machine = TuringMachine(**VALID)
  for run in (functools.partial(simulate, machine), AttentionMachine(machine).run):
    with pytest.raises(ValueError, match=re.escape(message)):
      run(tape, max_steps)


def test_more_steps_than_float64_resolves_are_refused():
  transformer = AttentionMachine(TuringMachine(**VALID))
  assert transformer.run('11', MAX_STEPS - 3).halted
  with pytest.raises(ValueError, match='262145 decoder steps .* are too many'):
    transformer.run('11', MAX_STEPS - 2)


def nearest_of_new_cell(last):
  """Return what attention finds if the head was on the neighbour at last, last − 2, ..."""
  positions = np.arange(last, 0, -2, dtype=np.float64)[:, None]
  keys = np.concatenate([np.zeros_like(positions), 1 / positions], axis=1)
  return hard_attention(np.array([1.0, 0.0]), keys, positions).item()


def test_float64_tells_all_scores_apart_up_to_the_limit():
  positions = np.arange(1, MAX_STEPS + 200, dtype=np.float64)
  scores = -1 - np.square(1 / positions)
  ties = positions[2:][scores[2:] == scores[:-2]]
  assert ties.size == 0
  assert nearest_of_new_cell(MAX_STEPS) == MAX_STEPS
  # Not far behind, two scores are equal and their values are averaged.
  assert nearest_of_new_cell(262_564) == 262_563
  # What was written in the first cell, as seen from the last: −1 against −1 − 1/p².
  keys = np.array([[0.0, 1.0], [1.0, 1 / MAX_STEPS]])
  assert hard_attention(np.zeros(2), keys, np.array([[7.0], [9.0]])) == 7


def test_float64_finds_what_rational_numbers_find():
  def checked(query, keys, values):
    rational = lambda x: Fraction(1, round(1 / x)) if 0 < x < 1 else Fraction(round(x))
    score = [-sum((rational(k) - rational(q)) ** 2 for k, q in zip(key, query)) for key in keys]  # noqa: B905
    best = [value for value, s in zip(values, score, strict=True) if s == max(score)]
    assert len(best) == 1
    result = hard_attention(query, keys, values)
    np.testing.assert_array_equal(result, best[0])
    return result

  assert AttentionMachine(SHIFTS, checked).run('', 50) == simulate(SHIFTS, '', 50)
  assert AttentionMachine(SWEEP, checked).run('$1', 60) == simulate(SWEEP, '$1', 60)


@given(seed=st.integers(0, 10**6), log_scale=st.floats(-1, 4), tied=st.booleans())
def test_hard_attention_is_the_limit_of_gaussian_attention(seed, log_scale, tied):
  rng = np.random.default_rng(seed)
  query, keys, values = rng.normal(size=3), rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
  if tied:  # Every key twice.
    keys[4:] = keys[:4]
  score = np.unique(-np.sum(np.square(keys - query), axis=1))
  gap, scale = score[-1] - score[-2], 10**log_scale
  error = np.abs(
    gaussian_attention(query, keys, values, scale) - hard_attention(query, keys, values)
  )
  bound = 2 * len(keys) * math.exp(-scale * gap / 2) * np.max(np.abs(values))
  assert np.all(error <= bound + 1e-12)


@pytest.mark.parametrize(
  ('machine', 'tape', 'max_steps'),
  [(PALINDROME, '$0110', 40), (SHIFTS, '', 23), (SWEEP, '$', 150)],
)
def test_a_scale_of_the_cube_of_the_steps_runs_the_machine_with_soft_attention(
  machine, tape, max_steps
):
  length = len(tape) + 1 + max_steps
  soft = functools.partial(gaussian_attention, scale=2 * length**3)
  assert AttentionMachine(machine, soft).run(tape, max_steps) == simulate(machine, tape, max_steps)


@given(case=machines(), max_steps=st.integers(0, 30))
@settings(max_examples=25)
def test_the_cube_of_the_steps_is_enough_for_random_machines(case, max_steps):
  parts, tape = case
  machine, length = TuringMachine(*parts), len(tape) + 1 + max_steps
  soft = functools.partial(gaussian_attention, scale=2 * length**3)
  run = AttentionMachine(machine, soft).run
  assert outcome(run, tape, max_steps) == outcome(simulate, machine, tape, max_steps)


def test_no_scale_lasts_for_ever():
  soft = functools.partial(gaussian_attention, scale=1000)
  assert AttentionMachine(SWEEP, soft).run('$', 5) == simulate(SWEEP, '$', 5)
  direct = simulate(SWEEP, '$', 150)
  assert outcome(AttentionMachine(SWEEP, soft).run, '$', 150) != direct
  too_soft = functools.partial(gaussian_attention, scale=0.01)
  with pytest.raises(ValueError, match='never copied'):
    AttentionMachine(INCREMENT, too_soft).run('0111', 9)


def printed_positive_features(x, omega):
  """Eq. 33 as printed: |x| in place of |x|²."""
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return jnp.exp(jnp.einsum('blhd,hmd->blhm', x, omega) - norm)


def printed_fourier_features(x, omega):
  """Eq. 34 as printed: 2^m times too large a kernel."""
  return fourier_features(x, omega) * 2 ** (x.shape[-1] / 2)


def expected_kernels(features, q, keys, num_nodes=48):
  """Return E phi(q)·phi(k) over omega ~ N(0, I) in two dimensions, by Gauss-Hermite quadrature."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
  omega = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 1, 2)  # One node a head.
  weights = np.outer(weights, weights).ravel() / (2 * math.pi)
  repeat = lambda x: jnp.broadcast_to(
    jnp.asarray(x, jnp.float32)[None, :, None], (1, len(x), len(omega), 2)
  )
  phi = lambda x: np.asarray(features(repeat(x), jnp.asarray(omega, jnp.float32)), np.float64)[0]
  return np.einsum('h,hm,lhm->l', weights, phi(q[None])[0], phi(keys))


QUERY = np.array([0.4, -0.3])
KEYS = np.array([[0.4, -0.3], [-0.2, 0.5], [0.9, 0.1], [-0.6, -0.7]])


@pytest.mark.parametrize('features', [fourier_features, positive_features])
def test_lemma_s2_both_maps_have_the_gaussian_kernel_in_expectation(features):
  kernel = np.exp(-np.sum(np.square(KEYS - QUERY), axis=1) / 2)
  np.testing.assert_allclose(expected_kernels(features, QUERY, KEYS), kernel, rtol=1e-5)


@pytest.mark.parametrize('features', [fourier_features, positive_features])
@pytest.mark.parametrize('scale', [1, 4])
def test_kernel_attention_in_expectation_is_gaussian_attention(features, scale):
  values, root = np.array([[1.0], [2.0], [4.0], [8.0]]), math.sqrt(scale)
  kernel = expected_kernels(features, root * QUERY, root * KEYS)
  expected = gaussian_attention(QUERY, KEYS, values, scale)
  np.testing.assert_allclose(kernel @ values / np.sum(kernel), expected, rtol=1e-5)


def test_what_lemma_s2_prints_is_not_the_gaussian_kernel():
  kernel = np.exp(-np.sum(np.square(KEYS - QUERY), axis=1) / 2)
  ratio = expected_kernels(printed_fourier_features, QUERY, KEYS) / kernel
  np.testing.assert_allclose(ratio, 4, rtol=1e-5)
  ratio = expected_kernels(printed_positive_features, QUERY, KEYS) / kernel
  assert np.ptp(ratio) > 0.1  # Does not even cancel in attention.
