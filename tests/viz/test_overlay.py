import numpy as np

from dias_lab.viz import overlay, palette


def test_segments_have_their_slots_colours():
    segments = np.array([[0, 1], [23, 24]], np.uint8)
    colours = overlay.colour_segments(segments)
    assert colours.dtype == np.uint8
    assert colours[0, 1].tolist() == list(palette.rgb(palette.slot_colour(1)))
    assert (colours[1, 1] == colours[0, 0]).all()


def test_void_and_overlap_are_grey():
    colours = overlay.colour_true_segments(np.array([0, 1, 254, 255], np.uint8))
    assert colours[[0, 2, 3]].tolist() == [
        list(palette.rgb(name)) for name in (palette.BACKGROUND, *[palette.VOID] * 2)
    ]
    assert colours[1].tolist() == list(palette.rgb(palette.SLOT_COLOURS[-1]))


def test_blend_is_between():
    image, colours = np.full((2, 3, 3), 100, np.uint8), np.full((2, 3, 3), 200, np.uint8)
    assert (overlay.blend(image, colours, 0.25) == 125).all()
    assert (overlay.blend(image, colours, np.eye(2, 3))[0, 0] == 200).all()
    assert (overlay.blend(image, colours, np.eye(2, 3))[0, 1] == 100).all()


def test_outlines_lie_between_labels():
    segments = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    drawn = overlay.draw_outlines(np.full((3, 3, 3), 7, np.uint8), segments)
    assert drawn.dtype == np.uint8 and (drawn[..., 0] == drawn[..., 2]).all()
    assert drawn[..., 1].tolist() == [[7, 255, 7], [255, 255, 255], [7, 7, 7]]


def test_heat_maps_have_a_fixed_scale():
    maps = np.array([[0.0, 0.5], [1.0, 1.2]])
    colours = overlay.heat_map(maps)
    assert colours.shape == (2, 2, 3) and colours.dtype == np.uint8
    assert (colours[1, 0] == colours[1, 1]).all()
    assert (overlay.heat_map(maps[:1]) == colours[:1]).all()


def test_pictures_are_smoothed_and_labels_never_mix():
    image, labels = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    image[:, 3:], labels[:, 3:] = 200, 200
    assert overlay.resize(image, 9, 5).shape == (5, 9, 3) and overlay.resize(labels, 9, 5).shape == (5, 9)
    assert len(np.unique(overlay.resize(image, 9, 5))) > 2 and set(np.unique(overlay.resize(labels, 9, 5))) == {0, 200}
    assert (overlay.resize(image, 6, 4) == image).all()
