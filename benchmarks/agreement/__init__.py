"""The figures of ``scripts/evaluate.py images`` on a known pair of folders, beside those of other programs."""
