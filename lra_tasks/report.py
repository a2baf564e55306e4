"""Print the results of finished runs beside the published figures.

  python -m lra_tasks.report [DIR...] [--format=table|markdown|csv|html] [--output=FILE]
                             [--published=matching|all|none] [--external]

Each DIR is the --model_dir of a run of lra_tasks.train, or a folder with such runs
anywhere below it; of those below, what is damaged or not finished is named and left out.
Runs of one config that differ in their seed alone become one row: mean and sample standard
deviation. Of those that differ in their learning rate too, the best rate on validation is
shown. There is one table for each task, data set and split; runs on several tasks have an
overview, and models that were run with the same seeds are compared. Without DIR the report
is about the runs that this package comes with.
"""

# In `reporting`: `results` reads files, `rows` makes numbers of them, which `summary` compares;
# `cells` makes words, `figures` figures, `text` and `html` the output.

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from lra_tasks.console import one_line_errors, parse_flags
from lra_tasks.reporting.html import render_html
from lra_tasks.reporting.published import load_published
from lra_tasks.reporting.rows import build_report
from lra_tasks.reporting.text import render_csv, render_markdown, render_table
from lra_tasks.runs.finding import KEPT, load_results

_FORMAT = flags.DEFINE_enum(
  'format', 'table', ('table', 'markdown', 'csv', 'html'),
  'table: text for the terminal. markdown: tables for GitHub. csv: raw numbers, accuracies as '
  'fractions, one line a row; where `comparable` is false (other data) or `changed` true (other '
  'fields than those of the preset), published figures do not compare, and differences are empty. '
  'html: one page with figures, for which matplotlib is needed.',
)  # fmt: skip
_OUTPUT = flags.DEFINE_string('output', None, 'File to write instead of standard output.')
_PUBLISHED = flags.DEFINE_enum(
  'published', 'matching', ('matching', 'all', 'none'),
  'Which published figures to show. matching: those of the models that were run, and of random '
  'guessing. all: also the models that were not run. none: no figures.',
)  # fmt: skip
_EXTERNAL = flags.DEFINE_bool(
  'external', False,
  "Also show entries of the LRA leaderboard that do not keep to LRA's rules, for models that were "
  'run, or with --published=all.',
)  # fmt: skip


RENDERERS = {
  'table': render_table,
  'markdown': render_markdown,
  'csv': render_csv,
  'html': render_html,
}


@one_line_errors
def main(argv: Sequence[str]) -> int:
  """Print the report of the directories `argv[1:]`; return the exit code."""
  found = load_results(argv[1:] or [KEPT])
  report = build_report(found, load_published(), _PUBLISHED.value, _EXTERNAL.value)
  text = RENDERERS[_FORMAT.value](report)
  if _FORMAT.value == 'csv':  # The other formats have notes.
    for note in report.left_out:
      print(f'note: {note}', file=sys.stderr)
  try:
    if _OUTPUT.value:
      Path(_OUTPUT.value).write_text(text, encoding='utf-8')
    else:
      sys.stdout.reconfigure(errors='replace')  # Encodings that lack a dash or a mark.
      print(text, end='', flush=True)
  except BrokenPipeError:
    # The reader (`| head`) has seen enough; keep the interpreter from flushing again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
