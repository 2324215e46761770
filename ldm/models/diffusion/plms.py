"""CompVis' call shape of PLMS sampling."""

from ldm.models.diffusion.ddim import DDIMSampler


class PLMSSampler(DDIMSampler):
    """Samples latents of a model by PLMS, which draws no noise: eta must be 0."""

    name = "plms"
