"""First stages, and the diffusion models over them."""
