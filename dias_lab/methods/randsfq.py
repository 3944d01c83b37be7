"""RandSF.Q: the slots of a frame are asked for by those of any earlier frame, looking at any later one's features.

Source: the release Genera1Z/RandSF.Q, by the authors of DIAS. The transition is `modules/transition.RSFQ`: it sees, in
training, the slots and the features of random frames in its window, and is told how long ago they were. The first frame has
all iterations, the others one; gradients go through all of them. Slots are decoded in a random order, as in DIAS.

The loss beside the reconstruction is a contrast between frames, as in SlotContrast; the release's variant "tsim" has the
time similarity of VideoSAUR in its place: similarity_weight=0.1, contrast_weight=0. Then a linear layer, which comes after
the decoder, makes the features and the logits out of its features.
"""

from torch import nn

from dias_lab.methods.videosaur import TimeSimilarity


class RandSFQ(TimeSimilarity):
    def __init__(self, config):
        super().__init__(config)
        if config.similarity_weight:
            dim = self.backbone.feature_dim
            self.readout = nn.Linear(dim, dim + self.num_locations)

    def trained_with(self, name: str) -> str:
        return "decoder" if name.startswith("readout.") else super().trained_with(name)
