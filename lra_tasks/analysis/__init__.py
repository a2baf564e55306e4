"""What `lra_tasks.inspect_run`, `variance` and `gradient_statistics` measure and draw."""
