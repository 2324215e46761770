"""What a GPU makes of this project, in one command of ten minutes: ``python -m benchmarks.gpu``."""
