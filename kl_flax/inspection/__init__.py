"""Look into a trained model: queries, keys and attention maps of each layer, numbers as tables.

`layers` captures what attention gets and does, `maps` and `measures` compute from that, `tables`
writes the measures down. All that others use is here.

Shapes: b sequences, l positions (CLS first, padding included), h heads, d head size, m frequencies.
"""

from kl_flax.inspection.layers import AttentionLayer, capture, capture_inputs
from kl_flax.inspection.maps import attention_map, exact_map, has_exact_kernel
from kl_flax.inspection.measures import EigenvalueRow, eigenvalue_rows, error_report, sample_pairs
from kl_flax.inspection.tables import eigenvalue_table, error_table, markdown

__all__ = [
  'AttentionLayer',
  'EigenvalueRow',
  'attention_map',
  'capture',
  'capture_inputs',
  'eigenvalue_rows',
  'eigenvalue_table',
  'error_report',
  'error_table',
  'exact_map',
  'has_exact_kernel',
  'markdown',
  'sample_pairs',
]
