import numpy as np

from dias_lab.viz import data_sheet
from dias_lab.viz.sheet import laid_over


def test_data_sheet():
    """Each picture has its panel, its name and the names of its larger segments; the background keeps its colours."""
    image, segments = np.full((60, 80, 3), 90, np.uint8), np.zeros((60, 80), np.uint8)
    segments[10:40, 10:40], segments[50:, 60:], segments[0] = 3, 254, 255
    wide = np.zeros((10, 300, 3), np.uint8)
    pictures = [(image, segments, "a" * 90 + ".jpg", {3: "cat"}), (wide, None, "wide.jpg", {})] * 3
    figure = data_sheet({"train: 6": pictures, "test: none": []}, "toy")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(figure.axes) == 6 and texts.count("cat") == 3 and texts.count("wide.jpg · no masks") == 3
    assert sum(text.startswith("…") and text.endswith("a.jpg · 1 segment") for text in texts) == 3
    assert {"toy", "train: 6", "test: none"} == {text.get_text() for text in figure.texts}
    panel = laid_over(image, segments)
    assert (panel[45, 30] == 90).all() and (panel[20, 20] != 90).any() and (panel[9, 20] == 255).all()
    assert len(np.unique(panel[52:59, 62:79].reshape(-1, 3), axis=0)) == 2  # stripes
    assert (image == 90).all()
