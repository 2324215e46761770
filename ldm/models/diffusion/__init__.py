"""Noise schedule, guidance, samplers, and the latent diffusion model."""
