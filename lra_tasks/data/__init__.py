"""Data of the tasks: builders, their sources, prepared records, batches."""
