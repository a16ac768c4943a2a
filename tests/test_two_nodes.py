"""Two Ray nodes of this machine write what `--engine local` writes, also when a worker dies."""

import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from eval.rses import main as score
from pseudo_labels.build import PhotoSource, build
from pseudo_labels.curate.filters import Limits
from pseudo_labels.job import BuildSettings
from pseudo_labels.scenes.draw import render_scene
from pseudo_labels.segment.given import read_labels
from pseudo_labels.stylize.functional import FunctionalStylizer
from pseudo_labels.stylize.registry import StyleEntry
from regionroute.cli.edit import main as edit
from regionroute.cli.label import main as label
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import StyleSpec, load_manifest
from regionroute.engines.base import EngineSettings
from regionroute.files import write_jsonl

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'regionroute[ray]'")
# pytest imports tests under names that other processes do not know.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RAY = ["--engine", "ray", "--workers", "2"]


class Killer(threading.Thread):
    """Kills the process of one Ray worker as soon as it is told to.

    Args:
        now: whether it is time.
    """

    def __init__(self, now):
        super().__init__(daemon=True)
        self.now, self.killed, self.stopped = now, None, False

    def run(self):
        while not self.stopped and self.killed is None:
            if self.now():
                workers = [p for p in psutil.process_iter(["name"]) if "_Actor.do" in title(p)]
                if workers:
                    workers[0].kill()
                    self.killed = workers[0].pid
            time.sleep(0.005)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped = True
        self.join()


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def files(folder, *names):
    """Every file below some parts of a folder with its bytes.

    A worker that is killed while it writes may leave a hidden temporary file.
    """
    found = {}
    for name in names:
        for path in sorted(folder.rglob(name)):
            if path.is_file() and not path.name.startswith("."):
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 photos with masks."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for index in range(24):
        scene = render_scene(100 + index, 192, count=2)
        write_image(folder / f"p{index:02}.png", scene.image)
        for word in scene.words():
            write_image(folder / f"p{index:02}.{word}.png", scene.mask(word))
        masks = [{"word": word, "mask": f"p{index:02}.{word}.png"} for word in scene.words()]
        rows.append({"image": f"p{index:02}.png", "objects": masks})
    rows.append({"image": "absent.png", "objects": [{"word": "dog"}]})
    write_jsonl(folder / "labels.jsonl", rows)
    return folder


def test_label(two_nodes, photos, tmp_path):
    def command(out, *more):
        only = ["--styles", "painting", "--only", "starry-night,watercolour"]
        keep = ["--min-structure", "-1", "--min-strength", "0", "--max-alike", "-1"]
        labels = str(photos / "labels.jsonl")
        return label(["--labels", labels, "--out", str(out), *only, *keep, *more])

    local, ray = tmp_path / "local", tmp_path / "ray"
    assert command(local, "--workers", "1") == 0
    records = ray / ".cache"
    with Killer(lambda: len(list(records.glob("*.json"))) >= 5) as killer:
        assert command(ray, *RAY) == 0
    assert killer.killed is not None
    assert files(local, "*") == files(ray, "*")
    assert len(files(local, "targets/*")) == 78


class Deadly(FunctionalStylizer):
    """Ends the process at one photo, as a lack of memory does."""

    def stylize_photo(self, path, content, style, **more):
        if path.name == "p03.png":
            os._exit(1)
        return self.stylize(content, style, **more)


class DeadlyEntry(StyleEntry):
    def build(self):
        return Deadly.build(filter="pixel-art")


def test_a_photo_that_kills_three_workers_is_rejected(two_nodes, photos, tmp_path):
    labels = read_labels(photos / "labels.jsonl")[0]
    source = PhotoSource("photos", labels[:6], [])
    settings = BuildSettings(size=64, limits=Limits(min_structure=-1, min_strength=0, max_alike=-1))
    entry = DeadlyEntry(StyleSpec("pixel-art"), "filter")
    ray, local = tmp_path / "ray", tmp_path / "local"
    report = build(source, [entry], ray, settings, engine=EngineSettings("ray", workers=2))
    [row] = map(json.loads, (ray / "rejected.jsonl").read_text().splitlines())
    assert row["photo"].endswith("p03.png")
    assert row["reason"].endswith("p03.png: its worker died 3 times, probably out of memory")
    others = [photo for photo in labels[:6] if photo.path.name != "p03.png"]
    assert len(others) == 5
    alone = build(PhotoSource("photos", others, []), [entry], local, settings)
    assert len({sample.provenance["photo_hash"] for sample in report.samples}) == 5
    assert report.samples == alone.samples
    assert files(ray, "targets/*", "contexts/*") == files(local, "targets/*", "contexts/*")


def test_a_driver_that_dies_resumes(two_nodes, photos, tmp_path):
    def arguments(out, *more):
        keep = ["--min-structure", "-1", "--min-strength", "0", "--max-alike", "-1"]
        only = ["--styles", "scenes", "--only", "pixel-art", "--limit", "8", *keep]
        return ["--labels", str(photos / "labels.jsonl"), "--out", str(out), *only, *more]

    local, other = tmp_path / "local", tmp_path / "ray"
    assert label(arguments(local, "--workers", "1")) == 0
    command = [sys.executable, "-m", "regionroute.cli.main", "label", *arguments(other, *RAY)]
    driver = subprocess.Popen(
        [*command, "--ray-address", two_nodes.address], stderr=subprocess.DEVNULL
    )
    records = other / ".cache"
    while driver.poll() is None and len(list(records.glob("*.json"))) < 2:
        time.sleep(0.005)
    driver.kill()
    driver.wait()
    found = {path: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 2 <= len(found) < 8
    assert label(arguments(other, *RAY)) == 0
    assert {path: path.stat().st_mtime_ns for path in found} == found  # none was made again
    assert files(local, "*") == files(other, "*")


def test_edit_batch(two_nodes, photos, tiny_base, tmp_path):
    def command(out, *more):
        rows = [
            {"image": f"p{index:02}.png", "object": "dog", "style": "neon", "out": f"{index}.png"}
            for index in range(23)
        ]
        rows.append({"image": "labels.jsonl", "object": "dog", "style": "neon", "out": "no.png"})
        for row in rows:
            row |= {"image": str(photos / row["image"]), "out": str(out / row["out"])}
        write_jsonl(out.with_suffix(".jsonl"), rows)
        how = ["--base", str(tiny_base), "--zero-shot", "--steps", "6", "--batch-size", "2"]
        return edit(["--batch", str(out.with_suffix(".jsonl")), *how, *more])

    local, ray = tmp_path / "local", tmp_path / "ray"
    assert command(local) == 1
    with Killer(lambda: len(list(ray.glob("*.png"))) >= 4) as killer:
        assert command(ray, *RAY) == 1
    assert killer.killed is not None
    assert files(local, "*.png") == files(ray, "*.png")
    assert len(files(local, "*.png")) == 23
    assert files(local, "*.json") == files(ray, "*.json")


def test_scoring(two_nodes, photos, tmp_path):
    data, edits = tmp_path / "data", tmp_path / "edits"
    only = ["--styles", "scenes", "--only", "cyberpunk", "--test-share", "1", "--max-alike", "-1"]
    keep = ["--min-structure", "-1", "--min-strength", "0", "--workers", "1"]
    assert label(["--labels", str(photos / "labels.jsonl"), "--out", str(data), *only, *keep]) == 0
    for sample in load_manifest(data):
        write_image(edits / f"{sample.id}.png", read_image(data / sample.target).roll(1, -1))
    named = ["--manifest", str(data), "--edits", f"ours={edits}", "--split", "test"]
    how = ["--metrics", "rse,ssim", "--batch-size", "2"]

    def command(out, *more):
        return score([*named, *how, "--out", str(out), *more])

    local, ray = tmp_path / "local", tmp_path / "ray"
    assert command(local) == 0
    with Killer(lambda: (ray / "cache.jsonl").exists()) as killer:
        assert command(ray, *RAY) == 0
    assert killer.killed is not None
    assert files(local, "*") == files(ray, "*")
    assert {"cache.jsonl", "samples.jsonl", "summary.json"} <= set(files(local, "*"))
