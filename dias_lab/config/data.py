"""What a run looks at."""

from dataclasses import dataclass

from dias_lab.config.fields import NotNegative, Part, Positive, Share


@dataclass(frozen=True)
class Data(Part):
    """The images. All methods read these."""

    data: str = "data/coco"  # folder with train.lmdb, validation.lmdb, test.lmdb
    image_size: Positive = 256  # pixels, the side of the protocol's square
    crop_scale: Share = 0.75  # smallest crop, as a share of the largest square's area; 1 switches cropping off
    cache_views: NotNegative = 0  # crops an image, each with its flip, with features computed once; 0: new ones each time
