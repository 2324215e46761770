"""PLMS sampling with the arguments of CompVis' ``PLMSSampler``."""

from ldm.models.diffusion.ddim import DDIMSampler


class PLMSSampler(DDIMSampler):
    """Samples latents of a model by PLMS, which is deterministic: eta must be 0."""

    name = "plms"
