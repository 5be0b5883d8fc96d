"""Every figure in the README comes from a program here; results are kept in `results/`."""
