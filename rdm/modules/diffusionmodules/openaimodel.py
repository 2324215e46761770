"""The U-Net as CompVis' retrieval-augmented-diffusion-models computes it."""

from typing import ClassVar

from ldm.modules.diffusionmodules import openaimodel


class UNetModel(openaimodel.UNetModel):
    """The U-Net of ``ldm``, which differs in what two of its arguments mean.

    The attention of encoder and decoder has the same heads whatever ``num_heads_upsample`` is, and the ``id_predictor``
    that ``n_embed`` asks for ends in a 3x3 convolution with padding 1 in place of a 1x1 convolution.
    """

    upsample_heads: ClassVar[bool] = False
    id_kernel: ClassVar[int] = 3
