"""What the neighbours of DIAS that are for clips alone read; their papers are named in methods/.

`changes` are what a release has on all data, `on_presets` its sizes there (Genera1Z/RandSF.Q, Genera1Z/VQ-VFM-OCL), and what
suits toys, whose features have six channels.
"""

from dataclasses import dataclass
from typing import ClassVar

from dias_lab.config.fields import Cosine, NotNegativeFloat, Part, PositiveFloat

MOVI, VIDEOS = ("movi_c", "movi_d", "movi_e"), ("ytvis", "movi_c", "movi_d", "movi_e")
NARROW = dict(slot_dim=64, slot_mlp_dim=256, project_dim=64, project_hidden_dim=768)
BOXED = dict(num_iterations=1, project_hidden_dim=768, project_dim=256, decoder_mlp_dim=1024)
TOYS = dict(codebook_size=256, code_dim=64, decoder_layers=2, decoder_mlp_dim=256)
ENCODER = dict(initializer="separate", transition="encoder", transition_dropout=0.1)


class RandSFQ(Part):
    changes: ClassVar = dict(
        transition="rsfq", transition_dropout=0.5, truncation="none", contrast_weight=0.5, similarity_weight=0.0
    )


class SlotContrast(Part):
    changes: ClassVar = dict(ENCODER, next_iterations=3, contrast_weight=0.5, decoder="mlp")
    on_presets: ClassVar = dict.fromkeys(VIDEOS, NARROW)


class TfdT(Part):
    changes: ClassVar = dict(ENCODER, code_dim=256)
    on_presets: ClassVar = dict.fromkeys(MOVI, BOXED) | {"clips": TOYS}


class STEVE(Part):
    changes: ClassVar = dict(TfdT.changes, cache_views=0)
    on_presets: ClassVar = TfdT.on_presets


class VideoSAUROriginal(Part):  # its authors' own code, for published weights
    changes: ClassVar = dict(truncation="none", next_iterations=2, transition="encoder", condition="none")


class SlotContrastOriginal(Part):
    changes: ClassVar = dict(VideoSAUROriginal.changes, decoder="mlp", contrast_weight=0.5)


@dataclass(frozen=True)
class VideoSAUR(Part):
    """Time similarity: of each location the decoder also tells which locations of the next frame are like it. VideoSAUR reads
    these, and RandSF.Q, which starts without it.
    """

    readers: ClassVar = ("videosaur", "videosaur_original", "randsfq")
    changes: ClassVar = dict(ENCODER, next_iterations=3)
    on_presets: ClassVar = dict.fromkeys(VIDEOS, NARROW | dict(decoder_layers=3, decoder_mlp_dim=1024)) | {
        "clips": dict(decoder_layers=2, decoder_mlp_dim=256, slot_frames=False, similarity_temperature=0.1),
    }

    similarity_weight: NotNegativeFloat = 0.1  # weight of this loss; 0: without it
    similarity_temperature: PositiveFloat = 1.0  # a location's target is the softmax of cosine similarities over this
    similarity_threshold: Cosine = -1.0  # similarities below it do not count; -1: all do
    similarity_alone: bool = False  # VideoSAUR only: nothing is reconstructed besides, as its authors have it on MOVi

    def check(self):
        if self.similarity_alone and (self.method == "randsfq" or not self.similarity_weight):
            raise ValueError("similarity_alone is an option of VideoSAUR, with similarity_weight above 0: else nothing is learnt")
        if self.method == "randsfq" and self.similarity_weight and self.decoder_locations:
            how = f"decoder_locations is {self.decoder_locations}: take 0, or similarity_weight=0"
            raise ValueError(f"time similarity is told at every location, and {how}")
