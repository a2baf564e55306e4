"""Runs as they lie in directories: what they say of themselves, how they are read and found."""
