"""Published recognition heads: one file becomes two runs, which are evaluated like any other."""

import pytest
import torch
import torch.nn.functional as F
from test_published_clips import SIZES, TINY, clips
from test_published_methods import constants, genera1z, linear, random_state
from test_published_videos import port, randsfq

from dias_lab import reference, runs
from dias_lab.__main__ import main
from dias_lab.config import Config
from dias_lab.data import store as stores
from dias_lab.heads import recognition
from dias_lab.reference import heads

pytestmark = pytest.mark.xdist_group("reference")


def published(model, D=256, classes=41):
    """Name -> shape of a model with a head on it."""
    head = linear("recogn.0", D, 2 * D) | linear("recogn.3", 2 * D, classes + 4)
    return {f"m.discov.{name[2:]}": shape for name, shape in model.items()} | {f"m.{name}": shape for name, shape in head.items()}


FULL = {
    "smoothsa": (published(clips(5)), 270, 35_349_934),
    "randsfq": (published(randsfq(5, similar=True)), 260, 34_448_429),
    "slotcontrast": (published(port("slotcontrast"), 64), 218, 31_440_558),
}


@pytest.mark.parametrize("method", FULL)
def test_full_size_state_dicts_become_runs(method, few_clips, tmp_path):
    shapes, keys, values = FULL[method]
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == (keys, values)
    state = constants(shapes)
    run = heads.save(state, tmp_path / "run", few_clips / "test.lmdb", method=method, device="cpu")
    head, model = recognition.load(run)
    assert (head.hidden.weight == state["m.recogn.0.weight"][0, 0]).all() and (head.out.bias == state["m.recogn.3.bias"][0]).all()
    assert head.hidden.weight.shape == shapes["m.recogn.0.weight"] and len(head.names) == 41
    name = "m.discov.aggregat.proj_q.weight"
    assert (model.state_dict()["aggregator.to_query.weight"] == state[name][0, 0]).all() and model.config.method == method


@pytest.fixture
def small(few_clips):
    classes = max(stores.open(few_clips / "test.lmdb").meta["classes"]) + 1
    return random_state(published(clips(3, **SIZES), 8, classes))


def test_the_head_says_what_the_file_says_and_is_evaluated(small, few_clips, tmp_path, capsys):
    run = heads.save(small, tmp_path / "run", few_clips / "test.lmdb", **TINY)
    head, model = recognition.load(run)
    slots = torch.randn(5, 3, 8)
    said = F.gelu(slots @ small["m.recogn.0.weight"].T + small["m.recogn.0.bias"]) @ small["m.recogn.3.weight"].T + small["m.recogn.3.bias"]
    found = head(slots)
    torch.testing.assert_close(torch.cat([found.logits, found.boxes], dim=-1), said)
    assert head.names[0] == "no class 0" and set(stores.open(few_clips / "test.lmdb").meta["classes"].values()) <= set(head.names)
    capsys.readouterr()
    main(["evaluate", "--run-dir", str(run), "--data", str(few_clips), "--split", "test"])
    told = capsys.readouterr().out
    assert "top-1" in told and recognition.PRIOR not in told  # how frequent classes were is not in the file
    assert (recognition.table([run], few_clips / "test.lmdb").index.get_level_values("predictor") == "head").all()
    assert Config.load(run).parent == runs.short(run / "model")


@pytest.mark.parametrize("method", ["smoothsa", "spot"])
def test_heads_of_images_load_and_stuff_beyond_their_classes_is_left_out(method, few_clips, tmp_path, monkeypatch):
    """As on COCO: 91 ids, where a panoptic store also names stuff, from 92 on."""
    monkeypatch.setattr(heads, "classes_of", lambda store: {1: "person", 90: "toothbrush", 92: "banner", 200: "rug"})
    shapes = genera1z(method, **SIZES)
    state = random_state(published(shapes, 8, 91))
    fields = {name: value for name, value in TINY.items() if name != "transition_frames"}
    run = heads.save(state, tmp_path / "run", few_clips / "test.lmdb", method, "coco", **fields)
    names = recognition.load(run)[0].names
    assert len(names) == 91 and (names[1], names[90], names[0]) == ("person", "toothbrush", "no class 0")
    monkeypatch.setattr(heads, "classes_of", lambda store: {92: "banner"})
    with pytest.raises(ValueError, match="tells 91 classes by their ids, and .*test.lmdb has none of these"):
        heads.save(state, tmp_path / "other", few_clips / "test.lmdb", method, "coco", **fields)


def test_the_prefix_of_a_wrapper_may_be_gone(small, few_clips, tmp_path):
    bare = {name.removeprefix("m."): value for name, value in small.items()}
    one, other = (heads.save(state, tmp_path / f"run{len(state)}{name}", few_clips / "test.lmdb", **TINY) for name, state in (("a", small), ("b", bare)))
    assert runs.weights_hash(one) == runs.weights_hash(other) and runs.weights_hash(one / "model") == runs.weights_hash(other / "model")


def test_a_save_that_was_stopped_leaves_no_run_and_can_be_repeated(small, few_clips, tmp_path, monkeypatch):
    run, write = tmp_path / "run", reference.write_run

    def stopped(folder, model, *more):
        if folder.name != "model":
            raise OSError("No space left on device")
        write(folder, model, *more)

    monkeypatch.setattr(reference, "write_run", stopped)
    with pytest.raises(OSError, match="No space left"):
        heads.save(small, run, few_clips / "test.lmdb", **TINY)
    assert not run.exists()
    monkeypatch.undo()
    recognition.load(heads.save(small, run, few_clips / "test.lmdb", **TINY))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_does_not_fit_is_refused_and_nothing_is_written(small, few_clips, tmp_path):
    store, run = few_clips / "test.lmdb", tmp_path / "run"
    for change, said in (
        ({"m.recogn.3.weight": torch.zeros(9, 16)}, "1 wrong: recogn.3.weight is"),
        ({"m.recogn.1.weight": torch.zeros(3)}, "1 unknown: recogn.1.weight"),
        ({"m.discov.more.weight": torch.zeros(3)}, r"the model in the state dict \(there its names begin with m.discov\).*1 unknown: more.weight"),
        ({"m.recogn.0.weight": torch.zeros(3)}, "and not a matrix and a vector"),
        ({"m.recogn.0.weight": torch.zeros(16, 9)}, "is for slots of width 9, and its model has 8"),
        ({"more": torch.zeros(3)}, "1 unknown: more"),
        ({7: torch.zeros(3)}, "1 unknown: 7"),
    ):
        with pytest.raises(ValueError, match=said):
            heads.save(small | change, run, store, **TINY)
    with pytest.raises(ValueError, match="holds no recognition head on a model"):
        heads.save({"m.recogn.0.weight": torch.zeros(2, 2)}, run, store, **TINY)
    with pytest.raises(ValueError, match="this file holds a recognition head on a model: dias_lab.reference.heads makes two runs"):
        reference.load(small, "smoothsa", "ytvis", **TINY)
    with pytest.raises(ValueError, match="there is no file"):
        heads.save(tmp_path / "none.pth", run, store)
    assert not run.exists()
    heads.save(small, run, store, **TINY)
    with pytest.raises(ValueError, match="holds a run already"):
        heads.save(small, run, store, **TINY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files already"):
        heads.save(small, tmp_path / "mine", store, **TINY)
    assert (tmp_path / "mine/notes.txt").exists()
