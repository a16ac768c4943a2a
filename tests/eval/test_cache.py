import json

import pytest
import torch

from eval import batches, rses
from eval.cache import CACHE_FILE, FileHashes, ValueCache, pair_key, value_name
from eval.metrics.base import SampleMetric
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError


@pytest.fixture
def score(tiny_manifest, edits, tmp_path):
    """Runs the command; gives what it wrote."""

    def run(*extra, out="scores"):
        arguments = ["--manifest", str(tiny_manifest), "--split", "all"]
        for name, folder in edits.items():
            arguments += ["--edits", f"{name}={folder}"]
        rses.main([*arguments, "--out", str(tmp_path / out), *extra])
        return (tmp_path / out / "samples.jsonl").read_text()

    return run


@pytest.fixture
def measured(monkeypatch):
    """Which (metric, ids, method) were really measured."""
    calls = []
    update = SampleMetric.__call__

    def counted(self, batch):
        calls.append((self.name, tuple(batch.ids), batch.method))
        return update(self, batch)

    monkeypatch.setattr(SampleMetric, "__call__", counted)
    return calls


def test_nothing_is_measured_or_opened_twice(score, measured, monkeypatch):
    first = score()
    assert measured
    measured.clear()
    monkeypatch.setattr(batches, "load_source", lambda *_: pytest.fail("an image was opened"))
    assert score() == first
    assert measured == []


def test_a_killed_run_goes_on(score, measured, monkeypatch, tmp_path):
    whole = score(out="whole")
    measured.clear()
    update = SampleMetric.__call__

    def killed(self, batch):
        if "pair-2" in batch.ids:
            raise KeyboardInterrupt
        return update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SampleMetric, "__call__", killed)
        with pytest.raises(FileNotFoundError):  # no scores yet
            score("--batch-size", "1")
    cache = tmp_path / "scores" / CACHE_FILE
    with cache.open("a") as file:
        file.write('{"key": "cut o')  # as a kill in the midst of writing leaves it
    measured.clear()
    assert score("--batch-size", "1") == whole
    assert {ids for _, ids, _ in measured} == {("pair-2",), ("pair-3",)}
    assert all(json.loads(line) for line in cache.read_text().splitlines() if "cut o" not in line)


def test_a_further_metric_costs_only_itself(score, measured):
    score()
    measured.clear()
    score("--metrics", "rse,ssim")
    assert {name for name, _, _ in measured} == {"ssim"}


def test_what_changed_is_measured_again(score, measured, edits):
    score()
    measured.clear()
    edit = edits["half"] / "pair-1.png"
    write_image(edit, read_image(edit).flip(2))
    score()
    assert {(ids, method) for _, ids, method in measured} == {(("pair-1",), "half")}


def test_another_name_of_the_same_edits_is_no_change(score, measured, edits, tiny_manifest):
    score()
    measured.clear()
    (edits["half"]).rename(edits["half"].with_name("renamed"))
    edits["other"] = edits["half"].with_name("renamed")
    del edits["half"]
    text = score()
    assert measured == []
    assert '"method": "other"' in text


def test_the_key_is_of_contents_and_words(tiny_manifest, tmp_path, spoil):
    sample, other = load_manifest(tiny_manifest).samples[:2]
    file = tiny_manifest / "0.context.png"
    key = pair_key(sample, [file], "", FileHashes())
    assert key == pair_key(sample, [file], "", FileHashes())
    assert key != pair_key(other, [file], "", FileHashes())
    assert key != pair_key(sample, [file], "floor", FileHashes())
    assert pair_key(sample, [tmp_path / "nowhere"], "", FileHashes()) is None
    write_image(file, torch.zeros(3, 64, 64))
    assert key != pair_key(sample, [file], "", FileHashes())
    names = [value_name("m", text, {}) for text in ("a", "b")]
    assert names[0] != names[1]
    assert value_name("m", "a", {"weights": "1"}) != names[0]


def record(**values):
    return {"size": [1, 2], "mask_share": 0.5, "remarks": [], "values": values}


def test_values_add_up_and_survive(tmp_path):
    path = tmp_path / "cache.jsonl"
    cache = ValueCache(path)
    assert cache.get(None) is cache.get("k") is None
    cache.put({"k": record(a=1.0)})
    cache.put({"k": record(b=None)})
    size = path.stat().st_size
    cache.put({"k": record(a=1.0)})  # nothing new, nothing written
    assert path.stat().st_size == size
    assert ValueCache(path).get("k")["values"] == {"a": 1.0, "b": None}
    with pytest.raises(UserError, match="in the way"):
        ValueCache(tmp_path)
    nowhere = ValueCache(None)
    nowhere.put({"k": record()})
    nowhere.put({"k": record(a=1.0)})
    assert nowhere.get("k")["values"] == {"a": 1.0}


def test_a_sorted_file_does_not_depend_on_who_measured_first(tmp_path):
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl", "three.jsonl")]
    orders = [
        [{"b": record(x=1.0, y=2.0)}, {"a": record(x=3.0)}],
        [{"a": record(x=3.0)}, {"b": record(y=2.0)}, {"b": record(x=1.0)}],
    ]
    for path, order in zip(paths, orders, strict=False):
        cache = ValueCache(path)
        for records in order:
            cache.put(records)
        cache.sort()
    paths[2].write_bytes(paths[1].read_bytes()[:-9])  # a run that was killed while it wrote
    cache = ValueCache(paths[2])
    cache.put({"b": record(x=1.0, y=2.0)})
    cache.sort()
    assert [json.loads(line)["key"] for line in paths[0].read_text().splitlines()] == ["a", "b"]
    assert paths[0].read_bytes() == paths[1].read_bytes() == paths[2].read_bytes()
    before = paths[0].stat().st_ino
    cache = ValueCache(paths[0])
    cache.sort()
    assert paths[0].stat().st_ino == before  # as it was, not written
    assert ValueCache(paths[0]).get("b") == record(x=1.0, y=2.0)
    ValueCache(None).sort()


def test_two_runs_that_share_a_file_keep_each_others_values(tmp_path):
    first, second = (ValueCache(tmp_path / "cache.jsonl") for _ in range(2))
    first.put({"a": record(x=1.0)})
    second.put({"a": record(y=2.0), "b": record(x=3.0)})
    first.sort()
    second.sort()
    after = ValueCache(tmp_path / "cache.jsonl")
    assert after.get("a")["values"] == {"x": 1.0, "y": 2.0}
    assert after.get("b")["values"] == {"x": 3.0}


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "null",
        "{}",
        "[" * 50_000,
        '{"key": ' + "[" * 50_000 + "]" * 50_000 + ', "record": {}}',
        '{"key": "k", "record": {"values": {"a": 2.0}}}',
        json.dumps({"key": "k", "record": record(a="2.0")}),
        json.dumps({"key": "k", "record": record(a=float("nan"))}),
        json.dumps({"key": "k", "record": record(a=[2.0])}),
        json.dumps({"key": "k", "record": {**record(a=2.0), "size": None}}),
        json.dumps({"key": "k", "record": {**record(a=2.0), "size": []}}),
        json.dumps({"key": "k", "record": {**record(a=2.0), "mask_share": 5}}),
        json.dumps({"key": "k", "record": record(a=True)}),
        json.dumps({"key": "k", "record": record(a=10**400)}),
        json.dumps({"key": "k", "record": {**record(a=2.0), "remarks": ["grey"]}}),
        json.dumps(
            {"key": "k", "record": {**record(a=2.0), "remarks": [{"kind": 5, "text": None}]}}
        ),
    ],
)
def test_garbage_between_the_lines_is_ignored(tmp_path, line):
    path = tmp_path / "cache.jsonl"
    ValueCache(path).put({"k": record(a=1.0)})
    path.write_text(path.read_text() + line + "\n")
    assert ValueCache(path).get("k") == record(a=1.0)
