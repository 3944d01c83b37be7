"""Makes docs/attention.png: one test scene through the shipped model. Usage: python docs/attention.py [SCENE]"""

import sys
from pathlib import Path

import torch

from dias_lab import shipped
from dias_lab.data.scenes import SPLITS, scene
from dias_lab.viz import print_iterations

number = int(sys.argv[1]) if len(sys.argv) > 1 else 4
image, segments = scene(SPLITS["test"] + number)
images = torch.from_numpy(image).permute(2, 0, 1)[None]
trace = shipped().trace(images, torch.from_numpy(segments)[None], names=[f"test scene {number}"])
path = Path(__file__).with_suffix(".png")
print_iterations(trace).savefig(path, dpi=80)
print(f"wrote {path}")
