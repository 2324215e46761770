"""Encoders that CompVis' retrieval-augmented configs name."""
