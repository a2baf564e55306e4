"""Messages for what users mistype."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
  """Return the message for a name that is not known: the nearest one, and all of them.

  >>> unknown_name('model', 'gmm', ['gmm_rks', 'rks'])
  "unknown model 'gmm' (did you mean 'gmm_rks'?); known: gmm_rks, rks"
  """
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=1)
  hint = f' (did you mean {near[0]!r}?)' if near else ''
  return f'unknown {kind} {name!r}{hint}; known: {", ".join(known) or "none"}'
