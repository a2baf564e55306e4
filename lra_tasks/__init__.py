"""The Long Range Arena: data, training, evaluation and comparison."""
