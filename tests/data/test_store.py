"""The store: what is written is what is read, or an error says what is wrong and what to do."""

import errno
import io
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import lmdb
import numpy as np
import pytest
from PIL import Image

from dias_lab.data import lmdb_file, store

META = {"dataset": "toy", "split": "train", "classes": {3: "cat", 7: "dog"}, "source": "made here", "note": [1, 2]}
HEIGHT, WIDTH = 40, 56


def encode(array, form="PNG") -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, form)
    return buffer.getvalue()


def label_map(number: int = 0) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:9], labels[9:20, :30], labels[30:, 40:], labels[25], labels[27, : 1 + number % 30] = 1, 253, 254, 255, 1
    return labels


def record(number: int = 0, masks: bool = True, **info) -> store.Record:
    pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    by_segment = {"things": {1: True, 253: False}, "classes": {1: 3, 253: 7}, "crowds": {1: False, 253: False}}
    info = {"source": number, **(by_segment if masks else {}), **info}
    return store.Record(encode(pixels, "JPEG" if number % 2 else "PNG"), label_map(number) if masks else None, info)


def make(path, count: int = 5):
    return store.write(path, (record(number, masks=number != 2) for number in range(count)), META)


def sources(opened) -> list:
    return [item.info["source"] for item in opened]


def flip(path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0] ^ 1 << random.Random(position).randrange(8)
        file.seek(position)
        file.write(bytes([byte]))


# What is written is what is read


def test_round_trip(tmp_path):
    path = make(tmp_path / "train.lmdb", 70)  # more than a transaction
    opened = store.open(path)
    assert len(opened) == 70 and sources(opened) == list(range(70))
    for number in (0, 1, 2, 64, 69):
        given, read = record(number, masks=number != 2), opened[number]
        assert read.image == given.image
        assert read.info == {**given.info, "width": WIDTH, "height": HEIGHT}
        assert (read.segments is None) == (number == 2)
        if read.segments:
            assert (np.asarray(Image.open(io.BytesIO(read.segments))) == given.segments).all()
    assert opened[-1] == opened[69] and opened[np.int64(3)] == opened[3]
    assert opened.meta == {**META, "schema": 2, "kind": "image", "command": None, "count": 70}
    summary = store.verify(path)
    assert summary == {"items": 70, "with_segments": 69, "segments": 138, "things": 69, "bytes": path.stat().st_size}
    assert os.listdir(tmp_path) == ["train.lmdb"]  # no lock file


def test_a_read_record_can_be_written_again(tmp_path):
    first = store.open(make(tmp_path / "a.lmdb"))
    again = store.open(store.write(tmp_path / "b.lmdb", first, first.meta))
    assert list(again) == list(first) and again.meta == first.meta


def test_an_index_out_of_range(tmp_path):
    opened = store.open(make(tmp_path / "a.lmdb"))
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"item {index} .* has 5"):
            opened[index]


def test_a_store_may_be_empty(tmp_path):
    assert len(store.open(store.write(tmp_path / "a.lmdb", [], META))) == 0
    assert store.verify(tmp_path / "a.lmdb")["items"] == 0


@pytest.mark.parametrize("start", [1 << 14, 1 << 16, 1 << 20])
def test_the_map_grows(tmp_path, monkeypatch, start):
    monkeypatch.setattr(lmdb_file, "MAP_SIZE", start)
    path = make(tmp_path / "a.lmdb", 150)
    assert path.stat().st_size > start // 2 and store.verify(path)["items"] == 150


def test_records_are_streamed(tmp_path):
    seen = []

    def records():
        for number in range(3 * store.BATCH):
            [partial] = tmp_path.glob(".a.lmdb.partial-*")
            seen.append(partial.stat().st_size)
            yield record(number)

    store.write(tmp_path / "a.lmdb", records(), META)
    assert seen[0] < seen[store.BATCH + 1] < seen[2 * store.BATCH + 1]  # what was given is on disk


def test_thing_map():
    table = store.thing_map({"things": {1: True, 2: False, 253: True}})
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert np.flatnonzero(table).tolist() == table[table > 0].tolist() == [1, 253, 254, 255]
    assert np.flatnonzero(store.thing_map({})).tolist() == [254, 255]


def test_reading_leaves_the_folder_alone(tmp_path):
    path = make(tmp_path / "a.lmdb")
    before = path.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns
    os.chmod(path, 0o444)
    os.chmod(tmp_path, 0o555)
    try:
        assert len(list(store.open(path))) == 5
        store.verify(path)
    finally:
        os.chmod(tmp_path, 0o755)
    assert (path.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns) == before


# What is refused when writing

good = record()
wide = np.zeros((HEIGHT, WIDTH + 1), np.uint8)
palette = Image.fromarray(label_map()).convert("P")
BAD = {
    "neither JPEG nor PNG": good._replace(image=b"GIF89a" + good.image),
    "cannot be decoded": record(1)._replace(image=record(1).image[:-200]),
    "the image cannot": good._replace(image=good.image[:500]),
    "the segments cannot": good._replace(segments=b"RIFF"),
    r"\(40, 57\)": good._replace(segments=wide),
    r"uint8 \(40, 56\)": good._replace(segments=encode(wide)),
    "int64": good._replace(segments=label_map().astype(int)),
    "8 bits and one channel": good._replace(segments=encode(palette)),
    "one channel": good._replace(segments=encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8))),
    "8 bits": good._replace(segments=encode(label_map().astype(np.uint16))),
    r"info\['things'\] has \[1\]": record(things={1: True}),
    r"has \[1, 2, 253\]": record(things={1: True, 2: True, 253: True}),
    r"info\['classes'\] has \[1\]": record(classes={1: 3}),
    r"info\['things'\] is .*bool": record(things={1: 1, 253: 0}),
    r"\['1', '253'\]": record(things={"1": True, "253": False}),
    "has the segments \\[\\]": record(masks=False, things={1: True}),
    "no `source`": good._replace(info={"things": {1: True, 253: False}}),
    "width, height": record(width=WIDTH + 1),
    "not JSON": record(source=np.int64(3)),
    "NaN|nan": record(source=float("nan")),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_record_is_refused_and_the_old_store_stays(tmp_path, message):
    path = make(tmp_path / "a.lmdb", 2)
    with pytest.raises(store.StoreError, match=message) as caught:
        store.write(path, [record(0), record(1), BAD[message]], META)
    assert "item 2" in str(caught.value) and str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["a.lmdb"] and len(store.open(path)) == 2


@pytest.mark.parametrize("meta", [{}, {"dataset": "toy"}, {**META, "split": 3}, {**META, "extra": np.zeros(1)}])
def test_a_bad_meta_is_refused_at_once(tmp_path, meta):
    with pytest.raises(store.StoreError, match="split|dataset|JSON"):
        store.write(tmp_path / "a.lmdb", (pytest.fail("too late") for _ in range(1)), meta)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_records_passes_through(tmp_path):
    def records():
        yield record(0)
        raise FileNotFoundError(errno.ENOENT, "gone", "photo.jpg")

    with pytest.raises(FileNotFoundError, match="photo.jpg"):
        store.write(tmp_path / "a.lmdb", records(), META)
    assert os.listdir(tmp_path) == []


# What the system refuses


def test_no_folder_a_file_as_folder_a_folder_as_target(tmp_path):
    (tmp_path / "file").write_text("")
    for path, kind in (
        (tmp_path / "none" / "a.lmdb", FileNotFoundError),
        (tmp_path / "file" / "a.lmdb", NotADirectoryError),
        (tmp_path, IsADirectoryError),
    ):
        with pytest.raises(kind, match="Name a file in a folder that exists") as caught:
            make(path)
        assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    path = make(tmp_path / "a.lmdb")
    os.chmod(tmp_path, 0o555)
    try:
        with pytest.raises(PermissionError, match="may be written to"):
            make(path, 2)
    finally:
        os.chmod(tmp_path, 0o755)
    assert len(store.open(path)) == 5


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end(tmp_path, monkeypatch, call):
    path = make(tmp_path / "a.lmdb")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left.*enough space.*unchanged") as caught:
            make(path, 2)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["a.lmdb"] and len(store.open(path)) == 5


@pytest.mark.parametrize("limit", [1, 5_000, 100_000, 300_000])
def test_a_disk_that_is_full_on_the_way(tmp_path, limit):
    path = make(tmp_path / "a.lmdb")
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from test_store import make, sys\n"
        "try:\n    make(__import__('pathlib').Path(sys.argv[1]), 150)\n"
        "except OSError as error:\n"
        "    assert 'enough space' in str(error) and sys.argv[1] in str(error), error\n    sys.exit(3)"
    )
    assert python(script, path).wait() == 3
    assert os.listdir(tmp_path) == ["a.lmdb"] and len(list(store.open(path))) == 5


def python(script: str, path) -> subprocess.Popen:
    places = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    return subprocess.Popen([sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": places})


@pytest.mark.parametrize("old", [0, 5])
def test_killed_while_writing(tmp_path, old):
    path = make(tmp_path / "a.lmdb", old) if old else tmp_path / "a.lmdb"
    script = (
        "import time\nfrom test_store import META, record, store, sys\ndef records():\n"
        "    for number in range(200):\n        yield record(number)\n    time.sleep(60)\n"
        "store.write(sys.argv[1], records(), META)"
    )
    writer = python(script, path)
    deadline = time.monotonic() + 30
    while not any(partial.stat().st_size > 1_000_000 for partial in tmp_path.glob(".a.lmdb.partial-*")):
        assert time.monotonic() < deadline and writer.poll() is None
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(os.listdir(tmp_path)) == 1 + bool(old)  # what it left
    if old:
        assert sources(store.open(path)) == list(range(old))
    else:
        with pytest.raises(FileNotFoundError, match="convert"):
            store.open(path)
    make(path, 3)
    assert os.listdir(tmp_path) == ["a.lmdb"] and len(store.open(path)) == 3


def test_only_what_dead_writers_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [f".a.lmdb.partial-{os.getppid()}", f".b.lmdb.partial-{dead.pid}", ".a.lmdb.partial-x"]
    for name in [*kept, f".a.lmdb.partial-{dead.pid}", f".a.lmdb.partial-{os.getpid()}"]:
        (tmp_path / name).write_text("")
    make(tmp_path / "a.lmdb")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "a.lmdb"])


# What is refused when reading


@pytest.mark.parametrize("read", [store.open, store.verify])
def test_what_is_no_store(tmp_path, read):
    (tmp_path / "text").write_text("hello " * 10_000)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder" / "train.lmdb", 1)
    with (
        lmdb.open(str(tmp_path / "foreign"), subdir=False, lock=False) as environment,
        environment.begin(write=True) as t,
    ):
        t.put(b"000000", b"x")
    for name, message in (
        ("text", "not an LMDB file"),
        ("empty", "not an LMDB file"),
        ("folder", r"name one of its stores: \['train.lmdb'\]"),
        ("foreign", "another program made it.*convert legacy"),
    ):
        with pytest.raises(store.StoreError, match=message) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="dias_lab convert"):
        read(tmp_path / "none")


def test_a_store_without_meta(tmp_path):
    lmdb_file.write(tmp_path / "a.lmdb", [[(b"00000000/image", b"x")]], lambda path: None)
    with pytest.raises(store.StoreError, match="`meta` is damaged .*missing.*Convert"):
        store.open(tmp_path / "a.lmdb")


def test_a_newer_schema(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "SCHEMA", 7)
        path = make(tmp_path / "a.lmdb")
    with pytest.raises(store.StoreError, match="schema 7, .* reads up to 2. Update"):
        store.open(path)


def test_a_file_cut_short_anywhere(tmp_path):
    whole = make(tmp_path / "a.lmdb").read_bytes()
    cut = tmp_path / "cut.lmdb"
    pages = range(0, len(whole), 4096)
    for length in sorted({0, 1, 100, 5000, *pages, *range(7, len(whole), 1777), *range(len(whole) - 13, len(whole))}):
        cut.write_bytes(whole[:length])
        for read in (store.open, store.verify):
            with pytest.raises(store.StoreError, match="cut short|not an LMDB"):
                read(cut)
    cut.write_bytes(whole)
    assert len(store.open(cut)) == 5


def test_a_file_cut_short_while_open(tmp_path):
    path = make(tmp_path / "a.lmdb")
    opened = store.open(path)
    assert opened[4]
    os.truncate(path, 8192)
    for read in (lambda: opened[4], lambda: len(opened), lambda: opened.meta):
        with pytest.raises(store.StoreError, match="cut short"):
            read()


def test_a_flipped_bit_in_an_item_is_found(tmp_path):
    path = make(tmp_path / "a.lmdb")
    whole = path.read_bytes()
    for part in lmdb_file.read(path, *store._keys(3)):
        place = range(whole.index(part), whole.index(part) + len(part))
        for position in random.Random(0).sample(place, 25) + [place[0], place[-1]]:
            path.write_bytes(whole)
            flip(path, position)
            opened = store.open(path)
            with pytest.raises(store.StoreError, match=f"{re.escape(str(path))}: item 3 is damaged .*Convert"):
                opened[3]
            assert opened[2].info["source"] == 2
            with pytest.raises(store.StoreError, match="item 3|index"):  # info lies in a page of the index
                store.verify(path)


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path):
    path = make(tmp_path / "a.lmdb", 3)
    whole, items = path.read_bytes(), list(store.open(path))
    found = 0
    for position in [*range(160), *range(4096, 4256), *range(300, len(whole), 61), *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole)
        flip(path, position)
        try:
            store.verify(path)
        except store.StoreError:
            found += 1
        else:
            assert list(store.open(path)) == items
    assert found > 600


def test_verify_lists_the_first_ten_problems(tmp_path):
    path = make(tmp_path / "a.lmdb", 14)
    whole = path.read_bytes()
    for item in list(store.open(path))[:12]:
        flip(path, whole.index(item.image) + 100)
    with pytest.raises(store.StoreError) as caught:
        store.verify(path)
    assert re.findall(r"\n  item (\d+)", str(caught.value)) == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    "message, change",
    {
        "item 1": lambda keys: keys.pop(b"00000001/image"),
        "item 0": lambda keys: keys.pop(b"00000000/segments"),
        "item 4": lambda keys: keys.pop(b"00000004/info"),
        "1 records that belong to no item": lambda keys: keys.update({b"00000007/info": b"{}"}),
        "item 2": lambda keys: keys.update({b"00000002/segments": keys[b"00000001/segments"]}),
        "item 3: .*damaged": lambda keys: keys.update({b"00000003/image": keys[b"00000001/image"]}),
    }.items(),
)
def test_verify_compares_keys(tmp_path, message, change):
    path, names = make(tmp_path / "a.lmdb"), [key for number in range(5) for key in store._keys(number)] + [b"meta"]
    keys = {key: value for key, value in zip(names, lmdb_file.read(path, *names), strict=True) if value is not None}
    change(keys)
    lmdb_file.write(path, [sorted(keys.items())], lambda partial: None)
    with pytest.raises(store.StoreError, match=message):
        store.verify(path)


# Processes, threads, files that move


def read_in_worker(opened) -> list:
    return [len(opened), *sources(opened), len(store.open(opened.path))]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_after_the_parent_read(tmp_path, method):
    opened = store.open(make(tmp_path / "a.lmdb"))
    other = store.open(make(tmp_path / "b.lmdb", 2))
    assert opened[0] and other[0]
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map(read_in_worker, [opened, other, opened, other], chunksize=1)
    assert results == [[5, 0, 1, 2, 3, 4, 5], [2, 0, 1, 2]] * 2
    assert sources(opened) == [0, 1, 2, 3, 4]


def test_a_store_can_be_pickled(tmp_path):
    opened = store.open(make(tmp_path / "a.lmdb"))
    assert opened[0]
    blob = pickle.dumps(opened)
    assert len(blob) < 1000 and list(pickle.loads(blob)) == list(opened)


def test_two_stores_on_one_file_and_other_names_of_it(tmp_path, monkeypatch):
    path = make(tmp_path / "a.lmdb")
    (tmp_path / "link.lmdb").symlink_to(path)
    os.link(path, tmp_path / "hard.lmdb")
    monkeypatch.chdir(tmp_path)
    stores = [store.open(name) for name in (path, path, "a.lmdb", "link.lmdb", "hard.lmdb")]
    for number in range(5):
        assert len({opened[number].image for opened in stores}) == 1
    monkeypatch.chdir("/")
    assert sources(stores[2]) == [0, 1, 2, 3, 4]


def test_a_file_replaced_under_an_open_store(tmp_path):
    path = make(tmp_path / "a.lmdb")
    opened = store.open(path)
    assert len(opened) == 5 and opened[4]
    for count in (3, 6, 2):
        make(path, count)
        assert sources(opened) == list(range(count)) and opened.meta["count"] == count
        assert store.verify(path)["items"] == count
    os.rename(path, tmp_path / "b.lmdb")
    assert len(store.open(tmp_path / "b.lmdb")) == 2
    with pytest.raises(FileNotFoundError, match="convert"):
        opened[0]
    shutil.copy(make(tmp_path / "c.lmdb", 4), tmp_path / "b.lmdb")  # in place, under the same inode
    assert len(list(store.open(tmp_path / "b.lmdb"))) == 4


def test_writing_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.lmdb").symlink_to(tmp_path / "disk" / "a.lmdb")
    assert make(tmp_path / "a.lmdb") == tmp_path / "disk" / "a.lmdb"
    assert (tmp_path / "a.lmdb").is_symlink() and len(store.open(tmp_path / "a.lmdb")) == 5


def test_threads_read_while_the_file_is_replaced(tmp_path):
    path, errors, stop = make(tmp_path / "a.lmdb"), [], threading.Event()

    def read():
        opened = store.open(path)
        while not stop.is_set():
            try:
                assert opened[random.randrange(5)].info["height"] == HEIGHT
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        make(path)
        [child] = multiprocessing.get_context("fork").Pool(1).map(len, [store.open(path)])
        assert child == 5
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
