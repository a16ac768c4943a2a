"""Parsers of users' files, whatever the file: a `UserError` or a result in range, within 5 s.

100 examples of each in the fast suite, 2,000 in the slow one.
"""

import importlib.util
import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pseudo_labels.segment.outlines import corner_box, outline_mask
from pseudo_labels.stylize.registry import load_styles
from regionroute.adapters.files.patterns import first_match
from regionroute.config.io import load_config
from regionroute.config.run import RunConfig
from regionroute.data.image_files import ImageHeader
from regionroute.errors import UserError
from regionroute.files import parse_json_line, read_json

EXAMPLES = [100, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
HEADER = ImageHeader((48, 64))


def _readers():
    path = Path(__file__).with_name("readers.py")
    spec = importlib.util.spec_from_file_location("fuzz_readers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_readers"] = module  # where its data classes look for their names
    spec.loader.exec_module(module)
    return module


readers = _readers()
READERS = {reader.name: reader for reader in readers.readers()}

numbers = st.one_of(
    st.integers(-5, 100),
    st.integers(),
    st.floats(),
    st.sampled_from([10**12, 10**400, -1, 0, 1, 3072, 0.5]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=12))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def holds(count, *strategies):
    """Runs a check on `count` examples, each within 5 s."""

    def decorate(check):
        options = settings(
            max_examples=count,
            deadline=5000,
            database=None,
            derandomize=count <= 100,  # the fast suite is the same every time
            suppress_health_check=list(HealthCheck),
        )
        return options(given(*strategies)(check))()

    return decorate


@st.composite
def changed(draw, value):
    """A JSON value like a good one, with a part removed, added or replaced."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 9)) < 8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(list(keys)))
        copy = dict(value) if isinstance(value, dict) else list(value)
        what = draw(st.integers(0, 9))
        if what == 0:
            del copy[key]
        elif what == 1 and isinstance(copy, dict):
            copy[draw(st.text(max_size=8))] = draw(values)
        else:
            copy[key] = draw(changed(value[key]))
        return copy
    return draw(values)


def _check_sentence(error):
    assert str(error).strip()
    assert len(str(error)) < 20_000


def _try(name, content, folder):
    """A reader on a file: it may refuse it."""
    reader = READERS[name]
    for other, data in reader.beside.items():
        (folder / other).write_bytes(data)
    (folder / name).write_bytes(content)
    try:
        reader.read(folder / name)
    except UserError as error:
        _check_sentence(error)


LINES = {
    "manifest.jsonl": [readers.SAMPLE],
    "labels.jsonl": [json.loads(line) for line in readers.LABELS.splitlines()],
    "rows.jsonl": [json.loads(line) for line in readers.BATCH.splitlines()],
    "labels.json": [readers.COCO],
    "registry.txt": [readers.REGISTRY],
    "config.txt": [{"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 8}, "use_rslora": False}],
}


@pytest.mark.parametrize("count", EXAMPLES)
@pytest.mark.parametrize("name", LINES)
def test_changed_values(tmp_path, name, count):
    @holds(count, st.lists(st.sampled_from(LINES[name]).flatmap(changed), min_size=1, max_size=3))
    def check(rows):
        if not name.endswith(".jsonl"):
            rows = rows[:1]
        lines = [json.dumps(row, allow_nan=True) for row in rows]
        _try(name, "\n".join(lines).encode(errors="surrogatepass"), tmp_path)


@pytest.mark.parametrize("count", EXAMPLES)
@pytest.mark.parametrize("name", [*LINES, "run.yaml", "styles.yaml"])
def test_any_text(tmp_path, name, count):
    @holds(count, st.one_of(st.text(), st.binary()))
    def check(text):
        _try(name, text if isinstance(text, bytes) else text.encode(errors="replace"), tmp_path)


@pytest.mark.parametrize("count", EXAMPLES)
def test_run_lengths(count):
    counts = st.one_of(
        st.lists(numbers, max_size=8),
        st.integers(0, 3072).map(lambda first: [first, 3072 - first]),
        st.text(alphabet=[chr(48 + n) for n in range(64)], max_size=40),
        st.text(max_size=10),
        values,
    )
    sizes = st.one_of(st.just([48, 64]), st.just([96, 128]), st.lists(numbers, max_size=3), values)

    @holds(count, counts, sizes)
    def check(found, size):
        try:
            mask = outline_mask({"size": size, "counts": found}, HEADER)
        except UserError:
            return
        assert mask.shape == (1, 48, 64)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("count", EXAMPLES)
def test_polygons_and_boxes(count):
    points = st.lists(st.one_of(st.floats(-5, 70), numbers), max_size=12)

    @holds(count, st.one_of(points, st.lists(points, max_size=4), values), st.booleans())
    def check(outline, stated):
        try:
            found = {"size": [24, 32], "polygons": outline} if stated else outline
            mask = outline_mask(found, HEADER)
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
        except UserError:
            pass
        try:
            y0, x0, y1, x1 = corner_box(outline)
            assert y0 <= y1
            assert x0 <= x1
        except UserError:
            pass


@pytest.mark.parametrize("count", EXAMPLES)
def test_lora_headers(tmp_path, count):
    good = readers.lora()[0]
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    text = header["__metadata__"]["lora_adapter_metadata"]

    @holds(count, st.one_of(changed(header), values), changed(json.loads(text)), st.booleans())
    def check(outer, inner, keep):
        if keep:
            metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(inner)}
            outer = header | {"__metadata__": metadata}
        data = json.dumps(outer).encode(errors="surrogatepass")
        content = struct.pack("<Q", len(data)) + data + good[8 + length :]
        _try("lora.safetensors", content, tmp_path)


@pytest.mark.parametrize("count", EXAMPLES)
def test_patterns_of_modules(count):
    letters = st.text(alphabet="ab.*+?()[]|\\^$-{}", max_size=30)

    @holds(count, st.one_of(letters, st.text(max_size=30)), st.text(alphabet="ab.", max_size=60))
    def check(pattern, name):
        try:
            assert first_match({pattern: 1}, name) in (None, pattern)
        except UserError as error:
            _check_sentence(error)


@pytest.mark.parametrize("count", EXAMPLES)
def test_masks(tmp_path, count):
    levels = st.lists(st.sampled_from([0, 1, 2, 100, 127, 128, 254, 255]), min_size=1, max_size=4)
    modes = st.sampled_from(["L", "1", "P", "LA", "RGB", "RGBA", "I;16", "F"])

    @holds(count, levels, modes, st.integers(0, 2**32 - 1))
    def check(chosen, mode, seed):
        rng = np.random.default_rng(seed)
        grey = rng.choice(np.array(chosen, np.uint8), (6, 7))
        if mode in ("I;16", "F"):
            scale = rng.choice([1, 257]) if mode == "I;16" else rng.choice([1, 1 / 255])
            image = Image.fromarray((grey * scale).astype("u2" if mode == "I;16" else "f4"))
        else:
            image = Image.fromarray(grey).convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(Image.fromarray(rng.choice(np.array(chosen, np.uint8), (6, 7))))
        buffer = io.BytesIO()
        image.save(buffer, format="TIFF" if mode == "F" else "PNG")
        _try("mask.png", buffer.getvalue(), tmp_path)


@pytest.mark.parametrize("count", EXAMPLES)
def test_yaml_settings_and_styles(tmp_path, count):
    keys = st.sampled_from(["base", "optim", "supervision", "routing", "train", "styles", "seed"])
    styles = st.dictionaries(
        st.text(max_size=8),
        st.one_of(
            values,
            st.fixed_dictionaries(
                {"stylizer": st.one_of(st.just("filter"), values)},
                optional={"settings": values, "phrase": values},
            ),
        ),
        max_size=3,
    )

    @holds(count, st.dictionaries(keys, values, max_size=4), styles)
    def check(run, some):
        for name, content in (("run.yaml", run), ("styles.yaml", {"styles": some})):
            (tmp_path / name).write_text(json.dumps(content))  # JSON is YAML
            try:
                if name == "run.yaml":
                    assert isinstance(load_config(tmp_path / name, [], RunConfig), RunConfig)
                else:
                    assert load_styles(tmp_path / name)
            except UserError as error:
                _check_sentence(error)


@pytest.mark.parametrize("count", EXAMPLES)
def test_json_of_any_kind(tmp_path, count):
    nested = st.tuples(st.sampled_from(['{"a":', "["]), st.integers(1, 5000)).map(
        lambda pair: pair[0] * pair[1]
    )

    @holds(count, st.one_of(st.text(), nested, values.map(json.dumps)))
    def check(text):
        (tmp_path / "a.json").write_text(text, encoding="utf-8", errors="replace")
        for read in (lambda: read_json(tmp_path / "a.json"), lambda: parse_json_line("a", 1, text)):
            try:
                read()
            except UserError as error:
                _check_sentence(error)
