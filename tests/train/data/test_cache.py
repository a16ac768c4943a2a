import threading

import numpy as np
import pytest
import torch

import train.data.cache
from regionroute.errors import UserError
from train.data.cache import Cache, CacheEntry
from train.data.shards import Shard, write_shard


@pytest.fixture
def tensors():
    return {
        "half": torch.randn(3, 4).bfloat16(),
        "whole": torch.arange(6).reshape(2, 3),
        "empty": torch.zeros(0, 2),
    }


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )


def key_of(number):
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def counting(made, number):
    def make():
        made.append(number)
        return {"x": torch.full((64,), float(number))}

    return CacheEntry("things", key_of(number), make)


def shards(folder):
    return sorted(folder.glob("things/*.safetensors"))


def test_entries_come_back_as_they_were(tmp_path, tensors):
    entries = [tensors, {"x": torch.ones(2)}, {"x": torch.zeros(()), "y": torch.ones(1, 1)}]
    keys = ["ffffffffffffffff", "0000000000000000", "8000000000000001"]
    shard = Shard(write_shard(tmp_path, keys, entries))
    assert [f"{key:016x}" for key in shard.keys.tolist()] == keys
    assert all(same(shard.read(row), entry) for row, entry in enumerate(entries))
    cache = Cache(tmp_path.parent)
    for key, entry in zip(keys, entries, strict=True):
        assert same(cache.load(tmp_path.name, key), entry)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def _foreign(path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(64)}, path)  # readable, but not ours


@pytest.mark.parametrize("harm", [_cut, _flip, _foreign, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_named_and_what_it_held_made_again(tmp_path, harm):
    made = []
    entries = [counting(made, number) for number in range(3)]
    Cache(tmp_path).fill(entries)
    [path] = shards(tmp_path)
    harm(path)
    cache = Cache(tmp_path)  # of the next run
    if len(cache.absent("things", [entry.key for entry in entries])) == 0:  # only a bit is wrong
        with pytest.raises(UserError, match=rf"{path.name}: .*damaged.*same command again"):
            [cache.load("things", entry.key) for entry in entries]
        cache = Cache(tmp_path)
    else:
        [remark] = cache.remarks
        assert path.name in remark
        assert "encoded again" in remark
    assert not path.exists()
    cache.fill(entries)
    assert [cache.load("things", entry.key)["x"][0].item() for entry in entries] == [0, 1, 2]
    assert sorted(made) == [0, 0, 1, 1, 2, 2]


def test_damage_during_the_run_is_told_when_it_is_read(tmp_path):
    cache = Cache(tmp_path)
    entry = counting([], 5)
    cache.fill([entry])
    [path] = shards(tmp_path)
    _flip(path)
    with pytest.raises(UserError, match=rf"{path.name}.*damaged"):
        cache.load("things", entry.key)
    with pytest.raises(UserError, match=r"the cache lacks entry|no such|damaged"):
        Cache(tmp_path).load("things", entry.key)


def test_fill_computes_each_key_once_and_nothing_twice(tmp_path):
    cache, made = Cache(tmp_path), []
    entries = [counting(made, i % 3) for i in range(9)]
    cache.fill(entries)
    assert len(shards(tmp_path)) == 1  # many entries a file
    assert cache.fill(entries) == []
    assert Cache(tmp_path).fill(entries) == []
    more = [*entries, counting(made, 7)]  # of old and new only the new
    Cache(tmp_path).fill(more)
    assert sorted(made) == [0, 1, 2, 7]


def test_files_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(train.data.cache, "SHARD_ENTRIES", 4)
    cache = Cache(tmp_path)
    cache.fill([counting([], i) for i in range(10)])
    assert sorted(len(Shard(path).keys) for path in shards(tmp_path)) == [2, 4, 4]
    monkeypatch.setattr(train.data.cache, "SHARD_BYTES", 3 * 64 * 4)
    cache.fill([counting([], i) for i in range(20, 26)])
    assert sorted(len(Shard(path).keys) for path in shards(tmp_path)) == [2, 3, 3, 4, 4]
    assert all(cache.load("things", key_of(i))["x"].eq(i).all() for i in [*range(10), 20, 25])


def test_processes_share_the_work_without_overlap(tmp_path):
    made, entries = [], []
    entries = [counting(made, i) for i in range(7)]
    caches = [Cache(tmp_path) for _ in range(3)]
    absent = caches[0].absent("things", [entry.key for entry in entries])
    written = [
        cache.fill(entries, only={"things": absent[rank::3]}) for rank, cache in enumerate(caches)
    ]
    assert sorted(made) == list(range(7))
    assert sorted(len(Shard(files[0][1]).keys) for files in written) == [2, 2, 3]
    for cache in caches:
        for files in written:
            cache.adopt(files)
        assert len(cache.absent("things", absent)) == 0
        assert all(cache.load("things", entry.key) for entry in entries)


def test_a_failure_keeps_what_was_done_and_leaves_no_half_file(tmp_path):
    def fail():
        raise UserError("this picture is damaged")

    made, cache = [], Cache(tmp_path)
    entries = [counting(made, 0), counting(made, 1), CacheEntry("things", key_of(2), fail)]
    with pytest.raises(UserError, match="damaged"):
        cache.fill(entries)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == shards(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        Cache(tmp_path).fill(entries)
    assert made == [0, 1]


def test_what_waits_too_long_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(train.data.cache, "SHARD_SECONDS", 0.0)
    Cache(tmp_path).fill([counting([], i) for i in range(3)])
    assert len(shards(tmp_path)) == 3


def test_another_cache_of_the_folder_finds_what_came_later(tmp_path):
    early = Cache(tmp_path)
    early.scan("things")
    Cache(tmp_path).fill([counting([], 1)])
    assert early.load("things", key_of(1))["x"].eq(1).all()
    with pytest.raises(UserError, match="lacks entry"):
        early.load("things", key_of(2))


def test_threads_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(train.data.cache, "SHARD_ENTRIES", 2)
    monkeypatch.setattr(train.data.cache, "OPEN_SHARDS", 2)
    cache = Cache(tmp_path)
    cache.fill([counting([], i) for i in range(12)])
    wrong = []

    def read(seed):
        for number in np.random.default_rng(seed).integers(0, 12, 60).tolist():
            if not cache.load("things", key_of(number))["x"].eq(number).all():
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache._open) == 2
