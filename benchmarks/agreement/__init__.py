"""Compares the figures of ``scripts/evaluate.py images`` with those of other programs, on a known pair of folders."""
