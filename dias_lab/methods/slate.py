"""SLATE: slots tell the tokens of a picture, one after another.

Source: Singh et al. 2022, arXiv:2110.11405. The tokens are codes of small squares of pixels, learned by a small tokenizer
beside the rest, as there; nearest codes in place of a relaxed choice, and slots that look at a frozen backbone's features
and not at the tokens, follow its re-implementation in Genera1Z/VQ-VFM-OCL. All else is VQDINO's.

Axes: B images, R pixels of the protocol's square, h w locations, E channels of a code.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dias_lab.methods.vqdino import VQDINO
from dias_lab.modules.quantizer import Quantised, Quantizer, convolution

SIDE = 4  # pixels of a token's square, as in the paper
WIDTH = 64  # channels within the tokenizer, as in the paper


class SLATE(VQDINO):
    def build_quantizer(self) -> Quantizer:
        """A tokenizer: squares of pixels to codes, and back."""
        config, pixels = self.config, 3 * SIDE**2
        squares = [nn.Conv2d(3, WIDTH, SIDE, stride=SIDE), nn.ReLU()]
        encode = nn.Sequential(*squares, nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, config.code_dim, 1))
        back = [nn.Conv2d(WIDTH, pixels, 1), nn.PixelShuffle(SIDE)]
        decode = nn.Sequential(*convolution(config.code_dim, WIDTH), *back)
        return Quantizer(encode, decode, config.codebook_size, config.code_dim, config.commitment_weight)

    def quantise(self, images: Float[Tensor, "B 3 R R"] | None, features) -> Quantised:
        """The target: tokens of the picture, one for each location of the features.

        Raises ValueError for features without images.
        """
        if images is None:
            raise ValueError("SLATE's tokens come from pixels: give the images, features alone will not do")
        h, w = features.shape[2:]
        return self.quantizer(F.interpolate(images, (SIDE * h, SIDE * w), mode="bilinear", antialias=True))
