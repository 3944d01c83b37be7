"""What a run looks at."""

from dataclasses import dataclass

from dias_lab.config.fields import NotNegative, Part, Positive, Share


@dataclass(frozen=True)
class Data(Part):
    """The images. All methods read these."""

    data: str = "data/coco"  # folder with train.lmdb, validation.lmdb, test.lmdb
    image_size: Positive = 256  # pixels: the side of the centre square that models see and scores are computed on
    crop_scale: Share = 0.75  # the smallest random crop in training, as a share of the largest square's area; 1: no crops
    cache_views: NotNegative = 0  # fixed crops (views) an image, and their flips, whose features are kept; 0: new crops each time
