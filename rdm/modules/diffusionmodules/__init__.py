"""U-Nets that see the latents of neighbours."""
