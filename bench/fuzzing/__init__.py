"""Mutants of every kind of file that lapinfer reads, and what is done with each: `python -m bench.fuzz` runs them."""
