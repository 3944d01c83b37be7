import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO
from traces import run, some_trace

from dias_lab.viz import export


@pytest.fixture
def trace():
    return some_trace(names=["../a<b>/c.jpg", "ä ö", ""], about={"seed": 3})


@pytest.mark.parametrize("which", [0, "decoder"])
def test_png_and_coco_give_the_segments_back(trace, which, tmp_path):
    path = export.export(trace, tmp_path / "out", which)
    described, expected = json.loads(path.read_text()), trace.segments_of(which)
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(
        ["segments.json"] + [image["label_file"] for image in described["images"]]
    )
    for image, labels in zip(described["images"], expected, strict=True):
        with Image.open(path.parent / image["label_file"]) as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), labels + 1)
        seen = np.zeros(labels.shape, int)
        for annotation in described["annotations"]:
            if annotation["image_id"] == image["id"]:
                one = mask.decode(annotation["segmentation"]).astype(bool)
                assert annotation["area"] == one.sum() > 0 and annotation["category_id"] == annotation["slot"] + 1
                seen[one] += annotation["category_id"]
        np.testing.assert_array_equal(seen, labels + 1)  # each pixel exactly once


def test_pycocotools_reads_the_file(trace, tmp_path, capsys):
    data = COCO(export.export(trace, tmp_path, 1))
    assert len(data.imgs) == 3 and [one["name"] for one in data.loadCats(data.getCatIds())] == [f"slot {n}" for n in range(4)]
    first = data.loadAnns(data.getAnnIds(imgIds=[1]))[0]
    np.testing.assert_array_equal(data.annToMask(first), trace.segments_of(1)[1] == first["slot"])
    assert data.dataset["info"]["map"] == "iteration 2" and data.dataset["info"]["about"]["seed"] == 3


def test_merged_slots_have_no_annotation(trace):
    slots = {one["slot"] for one in export.coco(trace, "decoder")["annotations"] if one["image_id"] == 0}
    assert slots == {0, 1, 2}


def test_the_most_slots_fit_the_labels():
    trace = some_trace(images=1, slots=255, cells=(16, 16), size=(16, 16))
    described = export.coco(trace, 0)
    assert max(one["category_id"] for one in described["annotations"]) <= 255


def test_names_become_safe_file_names(trace):
    files = [image["label_file"] for image in export.coco(trace, 0)["images"]]
    assert files == ["00000-a_b_c.jpg.png", "00001-.png", "00002-.png"]


def test_maps_are_named_as_in_figures(trace):
    assert [export.stop_of(trace, name) for name in (None, "1", "2", "decoder")] == ["decoder", 0, 1, "decoder"]
    for name in ("0", "3", "last", "-1", "²"):
        with pytest.raises(ValueError, match="it has 1, 2, decoder"):
            export.stop_of(trace, name)


def test_the_command(trace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trace.save("x.npz")
    assert run("segments", "x.npz", "--out", "out", "--map", "1") == 0
    assert "wrote out/segments.json and 3 label maps" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "segments.json").read_text())["info"]["map"] == "iteration 1"
