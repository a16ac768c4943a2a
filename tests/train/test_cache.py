import pytest
import torch

from regionroute.errors import UserError
from train.cache import Cache, Entry


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


def counting(made, key, value):
    def make():
        made.append(key)
        return {"x": torch.full((64,), float(value))}

    return Entry("things", key, make)


def test_entries_come_back_as_they_were(tmp_path, tensors):
    cache = Cache(tmp_path)
    assert cache.read("things", "abcd") is None
    cache.write("things", "abcd", tensors)
    assert same(cache.read("things", "abcd"), tensors)
    assert same(cache.load("things", "abcd"), tensors)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def _foreign(path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(64)}, path)  # readable, but not ours: no checksum


@pytest.mark.parametrize("harm", [_cut, _flip, _foreign, lambda path: path.write_bytes(b"")])
def test_a_damaged_entry_is_noticed_and_rebuilt(tmp_path, harm):
    cache, made = Cache(tmp_path), []
    entry = counting(made, "abcd", 7)
    assert cache.fill([entry]) == 1
    harm(cache.path("things", "abcd"))
    with pytest.raises(UserError, match=r"abcd\.safetensors: .*rebuilt"):
        cache.load("things", "abcd")
    assert cache.fill([entry]) == 1
    assert cache.load("things", "abcd")["x"].eq(7).all()
    assert made == ["abcd", "abcd"]


def test_fill_computes_each_key_once_and_nothing_twice(tmp_path):
    cache, made = Cache(tmp_path), []
    entries = [counting(made, f"key{i % 3}", i % 3) for i in range(9)]
    assert cache.fill(entries) == 3
    assert cache.fill(entries) == 0
    assert sorted(made) == ["key0", "key1", "key2"]


def test_processes_share_the_work_without_overlap(tmp_path):
    cache, made = Cache(tmp_path), []
    entries = [counting(made, f"key{i}", i) for i in range(7)]
    counts = [cache.fill(entries, rank=rank, world=3) for rank in range(3)]
    assert sum(counts) == 7
    assert max(counts) - min(counts) <= 1
    assert sorted(made) == sorted(entry.key for entry in entries)


def test_a_failed_computation_leaves_nothing_behind(tmp_path):
    def fail():
        raise UserError("this picture is damaged")

    cache = Cache(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        cache.fill([Entry("things", "abcd", fail)])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
