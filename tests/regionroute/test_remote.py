"""Files in object stores: what commands read is there, what they write is uploaded, once."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

import regionroute.remote as remote
import regionroute.stores as stores
from eval.rses import main as score
from pseudo_labels.scenes.draw import render_scene
from regionroute.cli.edit import main as edit
from regionroute.cli.label import main as label
from regionroute.cli.main import main
from regionroute.data.images import write_image
from regionroute.errors import StoreError, UserError
from regionroute.files import atomic_write, write_json, write_jsonl
from tests.stores import LOCAL, SERVED, store

KEEP = ["--min-structure", "-1", "--min-strength", "0", "--max-alike", "-1", "--workers", "1"]
ONLY = ["--styles", "scenes", "--only", "pixel-art"]


@pytest.fixture(autouse=True)
def _staging(tmp_path, monkeypatch):
    monkeypatch.setenv("REGIONROUTE_STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr(stores, "PAUSE", 0.0)


@pytest.fixture(params=LOCAL)
def url(request, tmp_path, monkeypatch):
    """An empty folder."""
    with store(request.param, tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture(params=[*LOCAL, *SERVED])
def any_url(request, tmp_path, monkeypatch):
    """An empty folder, also of a server."""
    with store(request.param, tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four photos with masks, and a row of one that is absent."""
    folder = tmp_path_factory.mktemp("given") / "photos"
    rows = []
    for index in range(4):
        scene = render_scene(200 + index, 96, count=1)
        [word] = scene.words()
        write_image(folder / f"p{index}.png", scene.image)
        write_image(folder / f"p{index}.mask.png", scene.mask(word))
        masks = [{"word": word, "mask": f"p{index}.mask.png"}]
        rows.append({"image": f"p{index}.png", "objects": masks})
    rows.append({"image": "absent.png", "objects": [{"word": "dog", "mask": "p0.mask.png"}]})
    write_jsonl(folder / "labels.jsonl", rows)
    return folder


def put(folder, url):
    """Copy a folder to a URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            write(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def write(url, data):
    files, path = fsspec.core.url_to_fs(url)
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.pipe_file(path, data)


def contents(url, hidden=None):
    """Every file at a URL with its bytes; `hidden` is a path that they do not name."""
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    found = {name[len(root) + 1 :]: files.cat_file(name) for name in files.find(root)}
    assert hidden is None or not any(str(hidden).encode() in data for data in found.values())
    return found


def without_records(names):
    """Files without records of photos, which are named by where the photos are."""
    return [name for name in names if "/.cache/" not in f"/{name}"]


def label_arguments(place, out, *more):
    return ["--labels", f"{place}/labels.jsonl", "--out", str(out), *ONLY, *KEEP, *more]


def run_label(place, out, *more):
    return label(label_arguments(place, out, *more))


def test_a_command_without_urls_is_left_alone(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "run_staged", lambda *_: pytest.fail("staged"))
    assert run_label(photos, tmp_path / "out") == 0
    assert not (tmp_path / "staging").exists()


def test_label_writes_what_it_writes_to_a_folder(any_url, photos, tmp_path):
    put(photos, f"{any_url}/photos")
    assert run_label(photos, tmp_path / "local") == 0
    assert run_label(f"{any_url}/photos", f"{any_url}/pets") == 0
    found = contents(f"{any_url}/pets", hidden=tmp_path / "staging")
    own = {
        path.relative_to(tmp_path / "local").as_posix(): path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    products, records = without_records(own), len(own) - len(without_records(own))
    assert sorted(without_records(found)) == sorted(products)
    assert len(found) - len(products) == records == 4
    for name in products:  # a rejected photo is named by where it is
        place = f"{any_url}/photos".encode()
        assert found[name].replace(place, str(photos).encode()) == own[name], name
    [row] = map(json.loads, found["rejected.jsonl"].splitlines())
    assert row["reason"].startswith(f"{any_url}/photos/absent.png: ")


def test_edit_and_score_take_what_label_made(any_url, photos, tiny_base, tmp_path):
    def chain(place):
        data, edits, scores = (f"{place}/{name}" for name in ("pets", "edits", "scores"))
        base = ["--base", str(tiny_base), "--zero-shot", "--steps", "1"]
        assert run_label(f"{place}/photos", data, "--test-share", "1") == 0
        assert edit(["--manifest", data, "--out-dir", edits, *base]) == 0
        how = ["--metrics", "ssim,rse", "--report", f"{scores}/report.html"]
        return score(["--manifest", data, "--edits", f"ours={edits}", "--out", scores, *how])

    put(photos, str(tmp_path / "own/photos"))
    put(photos, f"{any_url}/photos")
    assert chain(tmp_path / "own") == chain(any_url) == 0
    found = contents(any_url, hidden=tmp_path / "staging")
    own = contents(f"file://{tmp_path}/own")
    assert sorted(without_records(found)) == sorted(without_records(own))
    edits = {name for name in own if name.startswith("edits/") and name.endswith(".map.png")}
    assert len(edits) == 4
    for name in edits | {"scores/samples.jsonl", "scores/cache.jsonl"}:
        assert found[name] == own[name], name
    assert json.loads(found["scores/summary.json"])["edits"] == {"ours": f"{any_url}/edits"}


def test_rows_of_a_batch_are_relative_to_its_url(url, photos, tiny_base):
    put(photos, f"{url}/photos")
    row = {"image": "photos/p0.png", "object": "dog", "style": "neon", "out": "out/0.png"}
    rows = [row, row | {"image": "photos/no.png", "out": "out/1.png"}]
    write(f"{url}/rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    base = ["--base", str(tiny_base), "--zero-shot", "--steps", "1"]
    assert edit(["--batch", f"{url}/rows.jsonl", *base]) == 1
    found = contents(f"{url}/out")
    assert sorted(found) == ["0.json", "0.png"]
    assert json.loads(found["0.json"])["image"] == f"{url}/photos/p0.png"


def test_a_run_elsewhere_resumes_from_what_is_uploaded(url, photos, tmp_path, monkeypatch):
    put(photos, f"{url}/photos")
    assert run_label(f"{url}/photos", f"{url}/pets") == 0
    before = contents(f"{url}/pets")
    monkeypatch.setenv("REGIONROUTE_STAGING", str(tmp_path / "another"))
    monkeypatch.setattr(
        "pseudo_labels.photo_worker.make_samples", lambda *_: pytest.fail("made again")
    )
    assert run_label(f"{url}/photos", f"{url}/pets") == 0
    assert contents(f"{url}/pets") == before


def test_the_store_is_the_truth(url, tmp_path):
    write(f"{url}/a.txt", b"one")
    write(f"{url}/b.txt", b"two")
    remote.download(url)
    here = remote.local_path(url)
    written = {name: (here / name).stat().st_ino for name in ("a.txt", "b.txt")}
    remote.download(url)
    assert {name: (here / name).stat().st_ino for name in written} == written  # none again
    files, root = fsspec.core.url_to_fs(url)
    files.rm(f"{root}/a.txt")
    write(f"{url}/b.txt", b"ten")
    (here / "c.txt").write_text("never uploaded")
    remote.download(url)
    assert {path.name: path.read_text() for path in here.iterdir()} == {"b.txt": "ten"}


def test_what_is_written_is_uploaded_before_it_has_a_name(url, tmp_path, monkeypatch):
    path, seen = remote.local_path(f"{url}/out/a.json"), []
    real = Path.replace

    def replace(self, target):
        if Path(target) == path:
            seen.append(contents(f"{url}/out"))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with remote._run():
        write_json(path, {"at": str(remote.local_path(f"{url}/in/b.png"))})
        write_json(tmp_path / "elsewhere.json", {})
    assert [list(found) for found in seen] == [["a.json"]]
    assert json.loads(seen[0]["a.json"]) == {"at": f"{url}/in/b.png"}
    assert json.loads(path.read_text()) == {"at": f"{url}/in/b.png"}
    before = path.stat().st_ino
    remote.download(f"{url}/out")
    assert path.stat().st_ino == before  # known as what is there


def test_a_store_that_fails_ends_the_command_and_rejects_nothing(
    url, photos, tmp_path, monkeypatch, capsys
):
    put(photos, f"{url}/photos")
    files, _ = fsspec.core.url_to_fs(url)
    real = type(files).info

    def info(self, path, **more):
        if "/targets/p2" in os.fspath(path):
            raise OSError("reset by peer")
        return real(self, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(files), "info", info)
        assert main(["label", *label_arguments(f"{url}/photos", f"{url}/pets")]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"error: {url}/pets/targets/p2\S*: reset by peer \(attempt 3 of 3\)", error)
    assert not [*remote.local_path(f"{url}/pets/targets").glob("p2*")]
    assert run_label(f"{url}/photos", f"{url}/pets") == 0
    assert run_label(photos, tmp_path / "local") == 0
    same = (tmp_path / "local" / "manifest.jsonl").read_bytes()
    assert contents(f"{url}/pets")["manifest.jsonl"] == same


def test_network_errors_are_tried_again(url, monkeypatch):
    write(f"{url}/a.txt", b"one")
    files, _ = fsspec.core.url_to_fs(url)
    real, left = type(files).get_file, [OSError("reset"), OSError("reset")]

    def flaky(self, *args, **more):
        if left:
            raise left.pop()
        return real(self, *args, **more)

    monkeypatch.setattr(type(files), "get_file", flaky)
    remote.download(url)
    assert (remote.local_path(url) / "a.txt").read_text() == "one"
    left += [OSError("reset by peer")] * 3
    write(f"{url}/b.txt", b"two")
    with pytest.raises(StoreError) as failed:
        remote.download(url)
    assert failed.value.filename == f"{url}/b.txt"
    assert failed.value.strerror.startswith("reset by peer (attempt 3 of 3): check the network")
    assert pickle.loads(pickle.dumps(failed.value)).args == failed.value.args


def test_files_that_grow_are_uploaded_now_and_then_and_at_the_end(url, monkeypatch):
    path = remote.local_path(f"{url}/scores/cache.jsonl")
    path.parent.mkdir(parents=True)
    clock = [0.0]
    monkeypatch.setattr(remote.time, "monotonic", lambda: clock[0])

    def append(arguments):
        for number in range(4):
            with path.open("a") as file:
                file.write(f"{number}\n")
            clock[0] += 12.0
            remote.grown(path)
        assert contents(f"{url}/scores")["cache.jsonl"] == b"0\n1\n2\n3\n"
        with path.open("a") as file:
            file.write("4\n")
        remote.grown(path)
        assert contents(f"{url}/scores")["cache.jsonl"] == b"0\n1\n2\n3\n"
        raise UserError(f"{path}: something else is wrong")

    with pytest.raises(UserError, match=rf"^{url}/scores/cache.jsonl: something"):
        remote.run_staged(append, ["--report", f"{url}/page.html"])
    assert contents(f"{url}/scores")["cache.jsonl"] == b"0\n1\n2\n3\n4\n"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("s3://bucket/a/../../b", "a part of this name cannot be a file's"),
        ("s3://bucket/labels.jsonl", "its folder is read with it, and that is the whole bucket"),
        ("abfs://bucket/photos", "need pip install"),
    ],
)
def test_what_cannot_be_staged_is_refused(name, problem, capsys):
    assert score(["--manifest", name, "--edits", "a", "--out", "b"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: ")
    with pytest.raises(UserError, match=problem):
        remote.run_staged(lambda _: 0, [name])


def test_other_nodes_must_share_the_staging_folder(tmp_path):
    with remote._run():
        told = remote.environment()
        remote.enter(told)
    assert set(told) == {"REGIONROUTE_STAGING", "REGIONROUTE_STAGING_RUN"}
    assert remote.environment() == {}
    with pytest.raises(UserError, match=rf"^{tmp_path}/staging: not all nodes share this folder"):
        remote.enter(told)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_label_run_that_is_killed_loses_nothing(photos, tmp_path, monkeypatch):
    with store("file", tmp_path, monkeypatch) as url:
        put(photos, f"{url}/photos")
        code = "import sys; from regionroute.cli.main import main; sys.exit(main(sys.argv[1:]))"
        arguments = ["--labels", f"{url}/photos/labels.jsonl", "--out", f"{url}/pets"]
        command = [sys.executable, "-c", code, "label", *arguments, *KEEP, "--styles", "scenes"]
        there = Path(url.removeprefix("file://")) / "pets"
        started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while started.poll() is None and len([*there.glob(".cache/*.json")]) < 2:
            time.sleep(0.005)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        done = {path: path.stat().st_ino for path in there.glob(".cache/*.json")}
        assert 2 <= len(done) < 5
        for record in done:
            for sample in json.loads(record.read_text())["samples"]:
                names = [sample["context"], sample["target"], sample["regions"][0]["mask"]]
                assert all((there / name).is_file() for name in names)
        monkeypatch.setenv("REGIONROUTE_STAGING", str(tmp_path / "another"))
        subprocess.run(command, check=True, capture_output=True)
        assert {path: path.stat().st_ino for path in done} == done  # none was made again
        own = [*KEEP, "--styles", "scenes"]
        assert label(["--labels", f"{photos}/labels.jsonl", "--out", f"{tmp_path}/own", *own]) == 0
        for name in ("manifest.jsonl", "metadata.jsonl"):
            assert (there / name).read_bytes() == (tmp_path / "own" / name).read_bytes()


def test_a_path_outside_stands_for_itself(tmp_path):
    with remote._run(), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "a.txt").read_text() == "text"
    assert remote.with_urls(f"{tmp_path}/a.txt") == f"{tmp_path}/a.txt"
