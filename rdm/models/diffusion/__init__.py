"""The retrieval-augmented diffusion model."""
