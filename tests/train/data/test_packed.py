"""Training on a packed manifest: the samples, keys and tokens of its rows, none of them read."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from regionroute.config.run import RunConfig
from regionroute.data.manifest import load_manifest, write_manifest
from regionroute.data.shards import ShardedRows
from regionroute.data.startup.columns import column_file
from regionroute.data.startup.pack import ASIDE, pack
from regionroute.errors import UserError
from regionroute.files import settings_hash
from regionroute.models.loading import load_base
from train.data import examples, packed
from train.data.caching import seen_of
from train.data.encode import Encoder
from train.data.examples import TrainingExample, TrainingExamples
from train.data.files import Files
from train.data.packed import packed_examples, sizes_of
from train.data.selection import select, split_parts

pytest.importorskip("pyarrow", reason="PyArrow is not installed: pip install 'regionroute[pack]'")


@pytest.fixture
def several(tiny_manifest):
    """The four tiny pairs, one of other sizes, one of two styles, one without an object."""
    samples = list(load_manifest(tiny_manifest))
    for name in (samples[1].context, samples[1].target, samples[1].regions[0].mask):
        with Image.open(tiny_manifest / name) as image:
            image.resize((96, 48)).save(tiny_manifest / name)
    box = (0, 0, 48, 96)
    samples[1] = replace(samples[1], regions=(replace(samples[1].regions[0], box=box),))
    two = (samples[0].regions[0], replace(samples[0].regions[0], object="cube", style="line-art"))
    prompt = "make the square in pixel-art style and the cube in line-art style"
    samples.insert(1, replace(samples[0], id="two", regions=two, prompt=prompt))
    spans = replace(samples[0].regions[0], object_span=(9, 15), style_span=(19, 28))
    samples.append(replace(samples[0], id="größe", regions=(spans,)))
    samples.append(replace(samples[0], id="none", regions=()))
    write_manifest(tiny_manifest, samples)
    return tiny_manifest


def everything(folder, base, buckets=True):
    """What a run reads of a manifest: selection and examples."""
    manifest = load_manifest(folder)
    config = RunConfig.model_validate({"data": {"manifest": str(folder)}})
    selection = select(manifest, config)
    encoder = Encoder(base, manifest, None if buckets else (64, 64), Files())
    selection, lost = seen_of(encoder, selection)
    numbers = {style.name: n for n, style in enumerate(selection.styles)}
    if manifest.columns is None:
        rows = (encoder.example(s, numbers[s.regions[0].style]) for s in selection.samples)
        examples = TrainingExamples(rows)
    else:
        examples = packed_examples(encoder, selection.samples, manifest.columns, numbers)
    return selection.styles, selection.skipped, lost, list(examples), examples.digest()


@pytest.mark.parametrize("rows", [2, 100])
def test_packed_rows_are_those_of_the_manifest(several, tiny_base, tmp_path, rows):
    base = load_base(str(tiny_base))
    plain = [everything(several, base, buckets) for buckets in (True, False)]
    validation = split_parts(load_manifest(several), "val")[0]
    files = pack(several, rows)
    assert len(files) == (4 if rows == 2 else 1)
    assert (several / ASIDE).exists() == (rows == 2)
    packed = load_manifest(several)
    assert packed.columns is not None
    assert [everything(several, base, buckets) for buckets in (True, False)] == plain
    assert split_parts(packed, "val")[0] == validation
    sizes = sizes_of(packed.columns, packed.columns.rows_of("train"))[0]
    assert sorted(sizes) == [(48, 96), (64, 64)]


def test_no_row_is_parsed_and_no_image_opened(tiny_manifest, tiny_base, monkeypatch):
    base = load_base(str(tiny_base))
    plain = everything(tiny_manifest, base)
    pack(tiny_manifest)
    for image in tiny_manifest.glob("*.png"):
        image.unlink()
    monkeypatch.setattr(ShardedRows, "__getitem__", lambda *_: pytest.fail("a row was parsed"))
    monkeypatch.setattr(ShardedRows, "__iter__", lambda *_: pytest.fail("rows were parsed"))
    assert everything(tiny_manifest, base) == plain


def test_changed_rows_are_refused_and_copies_are_not(tiny_manifest, tmp_path):
    [file] = pack(tiny_manifest)
    before = column_file(file).read_bytes()
    copy = shutil.copytree(tiny_manifest, tmp_path / "copy", copy_function=shutil.copy)
    assert load_manifest(copy).columns is not None
    assert pack(tiny_manifest) == [file]
    assert column_file(file).read_bytes() == before
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["prompt"] = rows[0]["prompt"].upper()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"was changed since it was packed.*manifest pack"):
        load_manifest(tiny_manifest)
    pack(tiny_manifest)
    assert load_manifest(tiny_manifest)[0].prompt == rows[0]["prompt"]


def test_mistakes_are_named(tiny_manifest):
    rows = (tiny_manifest / "manifest.jsonl").read_text()
    (tiny_manifest / "manifest.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="id 'pair-0' was used"):
        pack(tiny_manifest, rows=3)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tiny_manifest / "0.target.png")
    column_file(tiny_manifest / "manifest-00000.jsonl").unlink()
    with pytest.raises(UserError, match=r"target is 8x8 pixels but its context is 64x64"):
        pack(tiny_manifest)


def test_keys_of_many_contents_are_those_of_each(monkeypatch):
    monkeypatch.setattr(packed, "HASHED", 99)
    draw = np.random.default_rng(0)
    contents, number = draw.integers(0, 2**64, 500, dtype=np.uint64), draw.integers(0, 2, 500)
    contents[7], contents[0] = contents[9], 5  # a digit of many
    facts = [[packed.HASH, "vae", (64, 64)], [packed.HASH, "vae", (64, 96), [1, 2]]]
    wanted = [
        int(settings_hash([f"{content:016x}", *facts[which][1:]]), 16)
        for content, which in zip(contents.tolist(), number.tolist(), strict=True)
    ]
    assert packed._keys(facts, contents, number).tolist() == wanted


@pytest.mark.parametrize("at_once", [3, 7, 1000])
@pytest.mark.parametrize("odd", [None, (2, "two masks"), (1, 'größe "3"'), (1, "back\\slash")])
def test_the_digest_is_that_of_the_rows(monkeypatch, at_once, odd):
    monkeypatch.setattr(examples, "DIGESTED", at_once)
    draw = np.random.default_rng(0)

    def example(masks, name):
        keys = [f"{key:016x}" for key in draw.integers(0, 2**60, 3 + masks).tolist()]
        return TrainingExample(name, 0, "", ((1,),), (64, 64), *keys[:3], tuple(keys[3:]))

    rows = [example(1, f"row {number}") for number in range(20)]
    if odd:
        rows.insert(10, example(*odd))
    lists = [[row.id, row.context, row.target, row.text, *row.masks] for row in rows]
    text = json.dumps(lists, separators=(",", ":"))
    wanted = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert TrainingExamples(rows).digest() == wanted
    assert TrainingExamples().digest() == hashlib.sha256(b"[]").hexdigest()[:16]


def test_an_empty_manifest_is_refused_and_stays(tmp_path):
    (tmp_path / "manifest.jsonl").touch()
    with pytest.raises(UserError, match="holds no samples to pack"):
        pack(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.jsonl"]
