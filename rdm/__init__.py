"""Retrieval-augmented diffusion, built on ldm."""
