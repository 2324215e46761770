"""CompVis' name for the U-Net of retrieval-augmented diffusion; ours is one class for both."""

from ldm.modules.diffusionmodules.openaimodel import UNetModel

__all__ = ["UNetModel"]
