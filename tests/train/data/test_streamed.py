"""A cache at a URL: the entries, damage and training of a local one, in less memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import torch

import regionroute.stores
from regionroute.errors import UserError
from tests.stores import LOCAL, SERVED, store
from train.data.cache import Cache, CacheEntry
from train.data.streamed import StreamedCache, open_cache

COUNT = 40


def key_of(number):
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


KEYS = np.array([int(key_of(number), 16) for number in range(COUNT)], np.uint64)


def entries(made=None):
    def make(number):
        if made is not None:
            made.append(number)
        return {"x": torch.full((64,), float(number)), "y": torch.ones(2).bfloat16() * number}

    return [CacheEntry("things", key_of(n), lambda n=n: make(n)) for n in range(COUNT)]


@pytest.fixture(params=[*LOCAL, *SERVED])
def url(request, tmp_path, monkeypatch):
    """An empty folder, whose files hold ten entries each."""
    monkeypatch.setattr("train.data.cache.SHARD_ENTRIES", 10)
    with store(request.param, tmp_path, monkeypatch) as folder:
        yield f"{folder}/cache"


def files_of(url):
    files, root = fsspec.core.url_to_fs(url)
    return files, sorted(files.glob(f"{root}/things/[0-9a-f]*.safetensors"))


def test_entries_come_back_and_are_made_once(url, tmp_path):
    made = []
    cache = StreamedCache(url, 10**9)
    cache.fill(entries(made), show=False)
    cache.save_index()
    assert made == list(range(COUNT))
    assert len(files_of(url)[1]) == 4
    local = Cache(tmp_path / "local")
    local.fill(entries(), show=False)
    again = open_cache(url, tmp_path, 1.0)
    assert again.fill(entries(made), show=False) == []
    assert len(made) == COUNT
    for number in range(COUNT):
        own, other = again.load("things", key_of(number)), local.load("things", key_of(number))
        assert own.keys() == other.keys()
        assert all(own[n].dtype == t.dtype and torch.equal(own[n], t) for n, t in other.items())
    assert again.fetched == 4


def test_the_index_saves_reading_every_file(url, monkeypatch):
    StreamedCache(url, 1).fill(entries(), show=False)
    before = StreamedCache(url, 1)
    assert before.absent("things", KEYS).size == 0  # reads each file's own
    before.save_index()
    monkeypatch.setattr(StreamedCache, "_keys", lambda self, path: pytest.fail("read a file"))
    assert StreamedCache(url, 1).absent("things", KEYS).size == 0


def test_an_index_older_than_the_files_is_not_believed(url):
    cache = StreamedCache(url, 1)
    cache.fill(entries(), show=False)
    cache.save_index()
    files, names = files_of(url)
    files.rm(names[0])
    later = StreamedCache(url, 1)
    assert later.absent("things", KEYS).size == 10
    later.fill(entries(), show=False)
    later.save_index()
    assert StreamedCache(url, 1).absent("things", KEYS).size == 0


def test_memory_holds_no_more_than_it_is_given(url):
    StreamedCache(url, 1).fill(entries(), show=False)
    files, names = files_of(url)
    cache = StreamedCache(url, 2 * files.size(names[0]))
    for number in range(COUNT):  # in the order of the files
        cache.load("things", key_of(number))
    assert cache.fetched == 4
    assert len(cache._loaded) == 2
    cache.load("things", key_of(0))
    assert cache.fetched == 5


def test_threads_fetch_a_file_once(url):
    StreamedCache(url, 1).fill(entries(), show=False)
    cache, gate = StreamedCache(url, 10**9), threading.Barrier(4)

    def load(number):
        gate.wait(10)
        return cache.load("things", key_of(number))["x"][0].item()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, range(4))) == [0.0, 1.0, 2.0, 3.0]
    assert cache.fetched == 1


@pytest.mark.parametrize("harm", ["cut", "flip", "foreign"])
def test_a_damaged_file_is_named_and_set_aside(url, harm):
    cache = StreamedCache(url, 1)
    cache.fill(entries(), show=False)
    files, names = files_of(url)
    data = bytearray(files.cat_file(names[0]))
    data[-5] ^= 1
    wrong = {"cut": bytes(data[:-200]), "flip": bytes(data), "foreign": b"hello, this is a text"}
    files.pipe_file(names[0], wrong[harm])
    cache = StreamedCache(url, 1)
    if cache.absent("things", KEYS).size == 0:
        with pytest.raises(UserError, match=r"start the same command again and it is rebuilt"):
            [cache.load("things", key_of(number)) for number in range(COUNT)]
    assert files.glob(names[0] + ".damaged")
    again = StreamedCache(url, 1)
    assert again.absent("things", KEYS).size == 10


def test_network_errors_are_tried_again(url, monkeypatch):
    StreamedCache(url, 1).fill(entries(), show=False)
    monkeypatch.setattr(regionroute.stores, "PAUSE", 0.0)
    cache, failures = StreamedCache(url, 1), [OSError("reset"), OSError("reset")]
    real = cache._files_of.cat_file

    def flaky(name, *args, **kwargs):
        if failures:
            raise failures.pop()
        return real(name, *args, **kwargs)

    cache.absent("things", KEYS)
    monkeypatch.setattr(cache._files_of, "cat_file", flaky)
    assert cache.load("things", key_of(3))["x"][0] == 3
    failures += [OSError("reset by peer")] * 3
    with pytest.raises(UserError, match=r"reset by peer \(attempt 3 of 3\): check the"):
        cache.load("things", key_of(33))


@pytest.mark.parametrize("name", ["nowhere://bucket/cache", "gs3://x"])
def test_an_unknown_protocol_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=rf"^data.cache={name}: .*regionroute\[remote\]"):
        open_cache(name, tmp_path, 1.0)
