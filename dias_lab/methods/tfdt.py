"""VVO-TfdT: slots tell which codes of a shared codebook the features of every frame have: VQDINO in time.

Source: Zhao et al. 2025, arXiv:2502.20263, in its variant for videos (TfdT in Genera1Z/VQ-VFM-OCL), with STEVE's loop and
decoder. The quantizer learns beside the rest, and codes are the nearest in training, too, where the release draws them.
"""

from dias_lab.methods.steve import CodedClips
from dias_lab.methods.vqdino import VQDINO


class TfdT(CodedClips, VQDINO):
    pass
