"""Turing machines run by a Transformer: Theorems 1 and 2, executable.

Theorems 1 and 2 of Pal Chowdhury et al., "On Learning the Transformer Kernel", TMLR 07/2022, say
that Transformers with positional embeddings and kernel attention are Turing complete, by Fourier
and by positive features. Appendix A proves both at once: it builds, for any machine, a Transformer
whose attention is the hard limit of the Gaussian kernel, which both feature maps have in
expectation. `AttentionMachine` is that Transformer: its weights are read off the transition table,
and beyond them it knows of the machine only how to name the entries of its output.

At step i = 0, 1, ... the decoder holds y_i = [q(i), s(i), m(i−1), c(i), 0, ...]: state, symbol
under the head, last move and cell of the head. Layer 1 looks up the next state, the symbol v(i)
written, and the move m(i); layer 2 finds l(i+1), the last step at which the head was on the cell it
now moves to, and what it wrote there, s(i+1) = v(l(i+1)). There is no tape: it is attention over
the past. The first steps, in the state q_copy, write the input to it by cross attention.

Two things the theorems do not say. The limit is needed: to run N steps, `gaussian_attention` takes
a scale s of the order N³, so with soft attention no fixed weights of this construction run for
ever. And the features have the kernel in expectation: where a cell is new, all kernel values are
below exp(−s/2), which a finite number of features would have to resolve.

Errata of the appendix, as met here (i counts decoder steps from 0):

 1. Eq. 18 adds y_i to the cross attention. Right: p_i, else layer 2 loses what it has just found.
 2. A.1 has l(i) = max{j | c(j) = c(i)}, which is i. Right: over j < i.
 3. Decoder self attention sees "previous positions". Right: its own too, else eq. 42's second case,
    j = i, has no key.
 4. Eq. 20 has 2|Q| + 3|Σ| + 14 entries by its text. Right: 12, as numbered x1 to x12. As blank is
    0_s, |Σ| need not count it. There is no s3, and x5, x6 and x12 are idle.
 5. S.1 lets j start at 0, where 1/j is undefined. Right: cells of the encoder count from 1, and y_i
    has position i + 1, as in eq. 22.
 6. The encoder's input has x7 = j, but embeddings reach x9 to x12 only. Right: the network of V^e
    copies x10 to x7. The −1 of K^e needs that network's output linear, its ReLU inside; being in
    query and key alike, it cancels in the score.
 7. Eq. 21 to 26, 31 and 32 have α(i), β(i), and S.1 has −||i=j||² with its maximum at i = β(j).
    Right: α(i+1), β(i+1), as in eq. 40; −|i+1−j|², maximal at j = β(i+1).
 8. "If the state is q_init", v̄ is 0_s (twice). Right: q_copy. Only there α is not blank, and
    α + v̄ = v holds only if α is blank ever after: the input must not contain a blank.
 9. The copying phase ends by a move to the left. After an empty input this leaves the tape. Right:
    no move if c(i) = 0, by one more unit.
10. O² returns m(i−1) in the third entry. Right: m(i), by the invariant.
11. O² adds −M to all later entries, "M a large negative value". Right sign: M > 0. But no M does:
    x10 = i + 1 passes it after M steps. Here the output network has no weights for these entries.
12. The output network's ReLU would turn m = −1 into 0. Right: ReLU(m) − ReLU(−m), two units.
13. f_perc((l(i+1)+2−(i+1)) lacks a parenthesis and is "added". Right: it is subtracted. It is 1
    only for l(i+1) = i, but for l(i+1) = i − 1 its argument is 0, on the threshold: here 3/2.
14. Eq. 25 and 41 have z²_i. Right: z¹_i, the input of layer 2.
15. The key has c(j) = c(j+1) − m(i). Right: m(j). This and the value j = (j+1) − 1 take entries −1:
    the matrices are not binary.
16. S.3: other cells score "almost −1", and the right cell "greater than −1". Right: the others at
    most −1 − 1/(i+1)², the right cell −1/(j+1)² ≥ −1, which is −1 for j = 0. The maximum is the
    latest j, as claimed, but by margins that shrink: see `MAX_STEPS`.
17. Eq. 28 lets both indices run to d − 1, d the size of a query. Right: to the two lengths.
18. Eq. 33 has exp(−|x| + ωx). Right: k^(−1/2) exp(−|x|² + ωx). In eq. 37, ω − x + y is ω − (x + y).
19. Eq. 34 has the factor 2^m / k, m the size of x. Right: 1 / k; eq. 38 takes the integral over
    half the line (Abramowitz & Stegun 7.4.6) for that over the whole. It cancels in attention.

Not printed: a stay (m = 0) would make l(i+1) = i a true visit, so moves are −1 or 1; and 0_q being
q_copy, a decoder applied past a final state would start to copy again: it has to be stopped there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kl_flax.errors import unknown_name

Vector = Float[np.ndarray, ' d']
Attention = Callable[..., np.ndarray]

# Let c(i+1) be a new cell. The head is on its only visited neighbour, at position p = i + 1, and
# was there before at p − 2 or earlier: scores −1 − 1/p² and −1 − 1/(p−2)². They differ by more than
# 4/p³, and two numbers of [1, 2] stay different in float64 if they differ by more than 2^(−52):
# p ≤ 2^18. (The first tie is at 262564.) Other scores are wider apart: −1 from −1 − 1/p² up to
# p = 2^26, and those of the same cell, without the −1, keep their relative precision.
MAX_STEPS = 2**18


@dataclasses.dataclass(frozen=True)
class TuringMachine:
  """A deterministic machine with one tape, infinite to the right only.

  The head starts on the last symbol of the input (cell 0 if there is none); see appendix A.1.

  Attributes:
    states: names of the states.
    symbols: names of the symbols, blank included.
    blank: the symbol of all cells that were never written.
    transitions: (state, symbol) -> (next state, symbol written, move −1 or 1), for every symbol and
      every state that is not final.
    initial: the first state.
    final: the states in which the machine halts.

  Raises:
    ValueError: the parts do not fit together.
  """

  states: tuple[str, ...]
  symbols: tuple[str, ...]
  blank: str
  transitions: Mapping[tuple[str, str], tuple[str, str, int]]
  initial: str
  final: frozenset[str]

  def __post_init__(self):
    """Check that the parts fit together."""
    for kind, names in (('state', self.states), ('symbol', self.symbols)):
      if len(set(names)) < len(names):
        raise ValueError(f'a {kind} is named twice: {", ".join(names)}')
    self._check('symbol', self.blank)
    for state in (self.initial, *sorted(self.final)):
      self._check('state', state)
    for (state, symbol), (following, written, move) in self.transitions.items():
      for name in (state, following):
        self._check('state', name)
      for name in (symbol, written):
        self._check('symbol', name)
      if state in self.final:
        raise ValueError(f'the final state {state!r} has a transition on {symbol!r}')
      if move not in (-1, 1):
        raise ValueError(f'the move of ({state!r}, {symbol!r}) is {move}; it must be -1 or 1')
    wanted = [(q, s) for q in self.states if q not in self.final for s in self.symbols]
    if missing := [pair for pair in wanted if pair not in self.transitions]:
      raise ValueError(f'no transition for {", ".join(map(str, missing))}')

  def _check(self, kind, name):
    known = self.states if kind == 'state' else self.symbols
    if name not in known:
      raise ValueError(unknown_name(kind, name, known))

  def check_run(self, tape: Sequence[str], max_steps: int) -> None:
    """Raise ValueError unless the tape is an input (no blanks) and `max_steps` is not negative."""
    for cell, symbol in enumerate(tape):
      self._check('symbol', symbol)
      if symbol == self.blank:
        raise ValueError(f'cell {cell} of the input is blank; it has to end before its first blank')
    if max_steps < 0:
      raise ValueError(f'max_steps is {max_steps}; it must not be negative')


class Step(NamedTuple):
  """What the machine is in before a step: its state, the symbol under the head, the head's cell."""

  state: str
  symbol: str
  head: int


class Run(NamedTuple):
  """What a run gives.

  Attributes:
    steps: the configurations, one more than steps were made.
    tape: the symbols from cell 0 to the last that is not blank.
    halted: whether the last state is final; if not, `max_steps` were made.
  """

  steps: tuple[Step, ...]
  tape: tuple[str, ...]
  halted: bool


def simulate(machine: TuringMachine, tape: Sequence[str], max_steps: int) -> Run:
  """Run the machine directly, by its table.

  Args:
    machine: the machine.
    tape: the input, symbols other than blank; may be empty, and may be a str of one-letter symbols.
    max_steps: where to stop a machine that has not halted, ≥ 0.

  Raises:
    ValueError: no such input, or the head moves left of cell 0; the message names the step.
  """
  machine.check_run(tape, max_steps)
  cells = dict(enumerate(tape))
  state, head = machine.initial, max(len(tape) - 1, 0)
  steps = [Step(state, cells.get(head, machine.blank), head)]
  while state not in machine.final and len(steps) <= max_steps:
    state, cells[head], move = machine.transitions[state, steps[-1].symbol]
    head += move
    _append(steps, Step(state, cells.get(head, machine.blank), head))
  return _finish(machine, steps, cells)


def _append(steps, step):
  if step.head < 0:
    last = steps[-1]
    raise ValueError(
      f'step {len(steps) - 1} moves the head left of the leftmost cell '
      f'(state {last.state!r}, symbol {last.symbol!r})'
    )
  steps.append(step)


def _finish(machine, steps, cells):
  used = [cell for cell, symbol in cells.items() if symbol != machine.blank]
  tape = tuple(cells.get(cell, machine.blank) for cell in range(max(used, default=-1) + 1))
  return Run(tuple(steps), tape, steps[-1].state in machine.final)


def hard_attention(
  query: Float[np.ndarray, ' k'], keys: Float[np.ndarray, 'n k'], values: Float[np.ndarray, 'n d']
) -> Vector:
  """Return the mean of the values whose keys are nearest to the query, eq. 29 and 30.

  >>> hard_attention(np.array([1.]), np.array([[0.], [2.], [5.]]), np.array([[3.], [5.], [9.]]))
  array([4.])
  """
  score = -np.sum(np.square(keys - query), axis=1)
  return np.mean(values[np.flatnonzero(score == np.max(score))], axis=0)


def gaussian_attention(
  query: Float[np.ndarray, ' k'],
  keys: Float[np.ndarray, 'n k'],
  values: Float[np.ndarray, 'n d'],
  scale: float | int = 1,
) -> Vector:
  """Return attention by the Gaussian kernel exp(−scale |u−v|²/2), eq. 28 with one head.

  The scale is the square of a factor of the projections that make queries and keys. As it grows,
  the result tends to `hard_attention`: with a gap g between the best score and the next, and n
  keys, it differs by at most 2 n exp(−scale g / 2) times the largest value.

  >>> arrays = np.array([1.1]), np.array([[0.], [2.], [5.]]), np.array([[3.], [5.], [9.]])
  >>> [round(float(gaussian_attention(*arrays, scale=s)[0]), 3) for s in (1, 10, 100)]
  [4.102, 4.762, 5.0]
  """
  score = -np.sum(np.square(keys - query), axis=1)
  weights = np.exp(scale / 2 * (score - np.max(score)))  # The shift cancels in the ratio.
  return weights @ values / np.sum(weights)


def _perceptron(x):
  return (x > 0).astype(np.float64)


def _relu(x):
  return np.maximum(x, 0)


class _Network(NamedTuple):
  """Two layers, the second one linear: each unit reads a combination and writes a multiple."""

  activation: Callable
  inner: np.ndarray
  bias: np.ndarray
  outer: np.ndarray

  @classmethod
  def build(cls, activation, units):
    """Return the network of these units: (weights in, bias, weights out)."""
    inner, bias, outer = (np.array(part, np.float64) for part in zip(*units, strict=True))
    return cls(activation, inner, bias, outer.T)

  def __call__(self, x):
    return self.outer @ self.activation(self.inner @ x + self.bias)


class _Encoding:
  """The fields of the model encoding v, eq. 20: q one-hot states, s symbols, x scalars."""

  _FIELDS = 'q1 s1 x1 x2 q2 s2 x3 x4 x5 x6 x7 s4 x8 x9 x10 x11 x12'

  def __init__(self, machine):
    letters = tuple(s for s in machine.symbols if s != machine.blank)  # Blank is all zeros.
    self.blank = machine.blank
    self.labels = {'q': machine.states, 's': letters, 'x': ('',)}
    self.place, self.size = {}, 0
    for name in self._FIELDS.split():
      start, self.size = self.size, self.size + len(self.labels[name[0]])
      self.place[name] = slice(start, self.size)

  def weights(self, entries):
    """Return a vector: a field's name stands for all its entries, (field, label) for one."""
    vector = np.zeros(self.size)
    for key, weight in entries.items():
      name, label = (key, None) if isinstance(key, str) else key
      if label is None:
        vector[self.place[name]] += weight
      elif (name[0], label) != ('s', self.blank):
        vector[self.place[name].start + self.labels[name[0]].index(label)] += weight
    return vector

  def unit(self, reads, bias, writes):
    return self.weights(reads), bias, self.weights(writes)

  def projection(self, *rows):
    return np.stack([self.weights(row) for row in rows])

  def each(self, name):
    return [(name, label) for label in self.labels[name[0]]]

  def embedding(self, position):
    """Return the positional embedding (1, i, 1/i, 1/i²) in its place, i from 1."""
    return self.weights({'x9': 1, 'x10': position, 'x11': 1 / position, 'x12': 1 / position**2})

  def label(self, vector, name):
    """Return the state or symbol of a field, None or blank if it is all zeros."""
    hot = np.flatnonzero(vector[self.place[name]] > 0.5)
    if len(hot):
      return self.labels[name[0]][hot[0]]
    return self.blank if name[0] == 's' else None

  def integer(self, vector, name):
    return round(float(vector[self.place[name]][0]))


class AttentionMachine:
  """The Transformer of appendix A.2, with the corrections above, for one Turing machine.

  The attention layers that the construction does not use (the encoder's, layer 1's self and layer
  2's cross attention) have W_v = 0 and are left out, as are coordinates that are 0 in queries and
  keys alike. A run of N decoder steps takes O(N²) time and O(N) memory.

  Args:
    machine: the machine.
    attention: a function of query [k], keys [n, k] and values [n, d]: `hard_attention`, or
      `gaussian_attention` with the scale fixed. A scale of 2 N³ is enough for N decoder steps,
      those for copying the input included.

  Attributes:
    size: entries of the model encoding, 2|Q| + 3(|Σ| − 1) + 12.

  >>> machine = TuringMachine(
  ...   states=('flip', 'done'),
  ...   symbols=('0', '1', '_'),
  ...   blank='_',
  ...   transitions={
  ...     ('flip', '0'): ('flip', '1', 1),
  ...     ('flip', '1'): ('flip', '0', 1),
  ...     ('flip', '_'): ('done', '1', -1),
  ...   },
  ...   initial='flip',
  ...   final=frozenset({'done'}),
  ... )
  >>> run = AttentionMachine(machine).run('10', max_steps=9)
  >>> for step in run.steps:
  ...   print(*step)
  flip 0 1
  flip _ 2
  done 1 1
  >>> run.tape, run.halted
  (('1', '1', '1'), True)
  >>> run == simulate(machine, '10', max_steps=9)
  True
  """

  def __init__(self, machine: TuringMachine, attention: Attention = hard_attention):
    self.machine, self.attention = machine, attention
    self.encoding = _Encoding(machine)
    self.size = self.encoding.size
    self._build_cross_attention()
    self._build_look_up()
    self._build_self_attention()
    self._build_output()

  def _build_cross_attention(self):
    """Lemma S.1: the query (i+1, −1) finds the key (β(i+1), −1)."""
    encoding = self.encoding
    # K^e has two entries only. Both of its units read what is positive, so that ReLU is identity.
    self.encoder_keys = _Network.build(
      _relu,
      [(encoding.weights({'x10': 1}), 0, [1, 0]), (encoding.weights({'x9': 1}), 0, [0, -1])],
    )
    self.encoder_values = _Network.build(
      _relu,
      [encoding.unit({entry: 1}, 0, {entry: 1}) for entry in encoding.each('s2')]
      + [encoding.unit({'x10': 1}, 0, {'x7': 1})],
    )
    self.cross_query = encoding.projection({'x10': 1}, {'x9': -1})

  def _build_look_up(self):
    """Eq. 23: a perceptron for each row of the table, three for copying; all thresholds halfway."""
    encoding, machine = self.encoding, self.machine
    units = [
      encoding.unit({entry: 1}, -0.5, {entry: -1})
      for entry in encoding.each('q1') + encoding.each('s1')
    ]
    units += [encoding.unit({'x1': sign}, -0.5, {'x1': -sign, 'x4': sign}) for sign in (1, -1)]
    for (state, symbol), (following, written, move) in machine.transitions.items():
      blank = symbol == machine.blank  # 0_s: the unit is silent if any symbol is there.
      units.append(
        encoding.unit(
          {('q1', state): 1, 's1' if blank else ('s1', symbol): -1 if blank else 1},
          -0.5 if blank else -1.5,
          {('q2', following): 1, ('s2', written): 1, 'x2': move, 'x3': move},
        )
      )
    # In q_copy = 0_q the symbol α is in s2 already: no unit writes it.
    units += [
      encoding.unit({'q1': -1, 's2': 1}, -0.5, {'x2': 1, 'x3': 1}),
      encoding.unit({'q1': -1, 's2': -1}, 0.5, {('q2', machine.initial): 1, 'x2': -1, 'x3': -1}),
      encoding.unit({'q1': -1, 's2': -1, 'x2': -1}, 0.5, {'x2': 1, 'x3': 1}),
    ]
    self.look_up = _Network.build(_perceptron, units)

  def _build_self_attention(self):
    """Lemma S.3: the score is −(c(i+1) − c(j))² − 1/(j+1)², maximal at j = l(i+1)."""
    encoding = self.encoding
    self.self_query = encoding.projection({'x2': 1}, {})
    self.self_key = encoding.projection({'x2': 1, 'x3': -1}, {'x11': 1})
    self.self_value = np.zeros((self.size, self.size))
    self.self_value[encoding.place['s4'], encoding.place['s2']] = np.eye(len(encoding.labels['s']))
    self.self_value[encoding.place['x8']] = encoding.weights({'x10': 1, 'x9': -1})

  def _build_output(self):
    """O² moves everything to the first group; the output network keeps that group alone."""
    encoding = self.encoding
    first = encoding.each('q1') + encoding.each('s1')
    source = encoding.each('q2') + encoding.each('s4')
    units = [
      encoding.unit({there: 1}, -0.5, {here: 1}) for here, there in zip(first, source, strict=True)
    ]
    units += [encoding.unit({'x3': sign}, -0.5, {'x1': sign}) for sign in (1, -1)]
    # l(i+1) = i: the cell is new. Entries 0 and −1 remain in s1, which ReLU makes blank.
    units.append(encoding.unit({'x8': 1, 'x10': -1}, 1.5, {'s1': -1}))
    self.recall = _Network.build(_perceptron, units)
    self.output = _Network.build(
      _relu,
      [encoding.unit({entry: 1}, 0, {entry: 1}) for entry in first]
      + [encoding.unit({x: sign}, 0, {x: sign}) for x in ('x1', 'x2') for sign in (1, -1)],
    )

  def encode(
    self, tape: Sequence[str]
  ) -> tuple[Float[np.ndarray, 'n 2'], Float[np.ndarray, 'n d']]:
    """Return K^e and V^e of the input and one blank after it."""
    encoding = self.encoding
    inputs = [
      encoding.weights({('s2', symbol): 1}) + encoding.embedding(position)
      for position, symbol in enumerate((*tape, self.machine.blank), start=1)
    ]
    return (
      np.stack([self.encoder_keys(x) for x in inputs]),
      np.stack([self.encoder_values(x) for x in inputs]),
    )

  def outputs(self, tape: Sequence[str], length: int) -> Iterator[tuple[Vector, Vector]]:
    """Yield z¹_i, layer 1's result, and y_(i+1), the decoder's, for i = 0, ..., length − 1.

    y_(i+1) is [q(i+1), s(i+1), m(i), c(i+1), 0, ...]; with hard attention all entries are integers
    (up to `MAX_STEPS`).
    """
    encoding, (encoder_keys, encoder_values) = self.encoding, self.encode(tape)
    keys, values = np.empty((length, 2)), np.empty((length, self.size))
    y = np.zeros(self.size)  # The seed: q_copy, blank, no move, cell 0.
    for i in range(length):
      # Layer 1.
      p = y + encoding.embedding(i + 1)
      a = p + self.attention(self.cross_query @ p, encoder_keys, encoder_values)
      z = a + self.look_up(a)
      # Layer 2.
      keys[i], values[i] = self.self_key @ z, self.self_value @ z
      a = z + self.attention(self.self_query @ z, keys[: i + 1], values[: i + 1])
      y = self.output(a + self.recall(a))
      yield z, y

  def run(self, tape: Sequence[str], max_steps: int) -> Run:
    """Run the Transformer and decode its vectors: the steps from y_i, the tape from z¹_i.

    Args:
      tape: as for `simulate`.
      max_steps: steps of the machine, not counting those for copying the input.

    Raises:
      ValueError: as `simulate`; or more than `MAX_STEPS` decoder steps were asked for, len(tape) +
        1 + max_steps, whose scores float64 does not tell apart; or attention too soft to copy the
        input.
    """
    self.machine.check_run(tape, max_steps)
    length = len(tape) + 1 + max_steps
    if length > MAX_STEPS:
      raise ValueError(
        f'{length} decoder steps (input, blank, max_steps) are too many: float64 resolves the '
        f'scores of {MAX_STEPS}'
      )
    encoding, steps, cells = self.encoding, [], {}
    for z, y in self.outputs(tape, length):
      cells[encoding.integer(z, 'x2') - encoding.integer(z, 'x3')] = encoding.label(z, 's2')
      state = encoding.label(y, 'q1')
      if state is None:  # Still q_copy.
        continue
      _append(steps, Step(state, encoding.label(y, 's1'), encoding.integer(y, 'x2')))
      if state in self.machine.final:
        break
    if not steps:
      raise ValueError('the input was never copied: attention is too soft to single out its cells')
    return _finish(self.machine, steps, cells)
