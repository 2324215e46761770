"""Encoders of conditions, and CLIP as an embedder."""
