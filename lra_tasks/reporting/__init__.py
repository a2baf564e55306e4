"""What `lra_tasks.report` says: finished runs, rows, comparisons, text, figures, pages."""
