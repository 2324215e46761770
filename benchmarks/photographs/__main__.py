"""Writes a Parquet file of photographs, see :mod:`benchmarks.photographs.clones`."""

from benchmarks.photographs.clones import main

main()
