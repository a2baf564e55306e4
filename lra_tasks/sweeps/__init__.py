"""Many runs as time allows: which, and making them. `lra_tasks.sweep` is the command."""
