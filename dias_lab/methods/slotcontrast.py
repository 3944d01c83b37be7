"""SlotContrast: a slot must find itself among all slots of the frame before, so that it keeps its object.

Source: Manasyan et al. 2025, arXiv:2412.14295, as re-implemented in Genera1Z/RandSF.Q: one Gaussian a slot (or boxes),
truncated gradients and three iterations on every frame, where the authors' own code (martius-lab/slotcontrast) has learned
vectors, full gradients, and two iterations on later frames: reference/originals.py has it.

An encoder layer predicts, Slot Attention corrects, an MLP decoder paints; the contrast, with its weight, is
`losses.contrast_loss`. All of it is in `config` (config/video_neighbours.py), and nothing is left to write.
"""

from dias_lab.methods.dinosaur import DINOSAUR
from dias_lab.methods.plain_clips import PlainClips


class SlotContrast(PlainClips, DINOSAUR):
    pass
