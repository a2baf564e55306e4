"""One training: batches, programs, steps, evaluation, the loop; told by `lra_tasks.train`."""
