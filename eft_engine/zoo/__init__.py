"""Trios that are ready to run, with the weights that ship inside the package."""
