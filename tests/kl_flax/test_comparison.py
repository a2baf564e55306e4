"""The table of estimation errors that README shows."""

import pytest

from kl_flax import comparison

SIZES = {'num_frequencies': 8, 'head_dim': 4, 'norm': 0.5, 'num_draws': 400}
# Frequencies that depend on each other have no closed form.
DEPENDENT = ('orthogonal', 'structured', 'FastFood')


@pytest.mark.parametrize('features', ['fourier', 'positive'])
def test_measured_errors_are_those_of_the_closed_form(features):
  header, _, *lines = comparison.table(features, **SIZES).splitlines()
  assert f'{features} features, M = 8, D = 4, (q ± k)² = 0.5' in header
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  assert len(rows) == {'fourier': 7, 'positive': 13}[features]
  for name, measured, closed, _ in rows:
    if name.startswith(DEPENDENT):
      assert closed == '', name
    else:
      assert float(measured) == pytest.approx(float(closed), rel=0.15), name
  ratios = {name: float(ratio) for name, *_, ratio in rows}
  assert ratios['independent draws'] == 1
  assert ratios['orthogonal'] < 0.97  # What it is for.


def test_command_prints_a_table_for_each_norm(monkeypatch, capsys):
  arguments = ['--num_frequencies=4', '--head_dim=4', '--norms', '0.5', '1', '--num_draws=2']
  monkeypatch.setattr('sys.argv', ['comparison', *arguments])
  comparison.main()
  assert capsys.readouterr().out.count('closed form') == 4
