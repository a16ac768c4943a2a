"""A small folder of "photos" (scenes saved as pictures) with labels in both forms."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from pseudo_labels.scenes.draw import render_scene
from regionroute.data.images import write_image


@pytest.fixture
def photos(drawn_photos, tmp_path):
    """Folder with four photos of 96 px and labels.jsonl: two rows in each form."""
    return Path(shutil.copytree(drawn_photos, tmp_path / "photos"))


@pytest.fixture(scope="session")
def drawn_photos(tmp_path_factory):
    """The folder that every test gets a copy of."""
    folder = tmp_path_factory.mktemp("drawn")
    rows = []
    for index in range(4):
        scene = render_scene(100 + index, 96, count=2 if index < 2 else 1)
        write_image(folder / f"p{index}.png", scene.image)
        objects = []
        for word in scene.words():
            write_image(folder / f"p{index}.{word}.png", scene.mask(word))
            objects.append({"word": word, "mask": f"p{index}.{word}.png"})
        if index < 2:
            rows.append({"image": f"p{index}.png", "objects": objects, "licence": "CC0"})
        else:
            rows += [{"file": f"p{index}.png", "mask_source": "hand", **item} for item in objects]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "labels.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def snapshot():
    """A function: every file under a folder with its bytes and time of change."""

    def take(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in files
        }

    return take


@pytest.fixture(scope="session")
def contents(snapshot):
    """A function: every file under a folder with its bytes."""
    return lambda folder: {name: data for name, (data, _) in snapshot(folder).items()}


@pytest.fixture(scope="session")
def networks():
    """The module beside this one: functions that save small random networks of real classes."""
    spec = importlib.util.spec_from_file_location(
        "networks", Path(__file__).with_name("networks.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def u2netp(assets):
    """The file of U²-Net-p."""
    return str(assets / "weights" / "segment" / "u2netp.onnx")
