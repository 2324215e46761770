"""Photographs: Parquet files from clones of public repositories, and the paper's questions on models of them."""
