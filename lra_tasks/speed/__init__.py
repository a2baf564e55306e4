"""What `lra_tasks.benchmark` measures, and how."""
