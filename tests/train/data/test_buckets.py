"""Training on pictures of several aspects, through the real command on the tiny base."""

import dataclasses
import gc
import signal
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

import train.inputs
import train.prepare
from regionroute.adapters import inject
from regionroute.config.run import FlowConfig, RunConfig
from regionroute.data.buckets import crop_window, fitted
from regionroute.data.images import read_image
from regionroute.data.manifest import load_manifest, write_manifest
from regionroute.diffusion.latents import mask_to_grid, pack
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditRequest
from regionroute.models.backbone import Backbone
from regionroute.models.loading import load_base
from regionroute.pretrained import quiet
from train.data.cache import Cache
from train.data.dataset import TrainingData
from train.data.encode import Encoder
from train.step import training_step
from train.trainer import Trainer

CROPS = {0: (0, 0, 64, 44), 1: (4, 0, 48, 64)}  # left, top, right, bottom; the rest stay square
SIZES = {"pair-0": (28, 40), "pair-1": (40, 28), "pair-2": (32, 32)}


@pytest.fixture
def mixed(tiny_manifest):
    """The tiny manifest with a lying, a standing and a square pair for training."""
    samples = load_manifest(tiny_manifest).samples
    for number, box in CROPS.items():
        for kind in ("context", "target", "mask"):
            path = tiny_manifest / f"{number}.{kind}.png"
            Image.open(path).crop(box).save(path)
    region = samples[1].regions[0]
    y0, x0, y1, x1 = region.box
    moved = dataclasses.replace(region, box=(y0, x0 - 4, y1, x1 - 4))
    samples[1] = dataclasses.replace(samples[1], regions=(moved,))
    write_manifest(tiny_manifest, samples)
    return load_manifest(tiny_manifest)


@pytest.fixture
def encodings(monkeypatch):
    """Counts what is encoded."""
    counts = Counter()
    for name in ("encode_images", "encode_prompts"):
        original = getattr(Backbone, name)

        def counted(self, *arguments, original=original, name=name):
            counts[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(Backbone, name, counted)
    return counts


def data_of(backbone, manifest, folder, global_batch=3):
    encoder, samples = Encoder(backbone, manifest), manifest.samples[:3]
    cache = Cache(folder / "cache")
    cache.fill(encoder.entries(samples))
    examples = [encoder.example(sample, 0) for sample in samples]
    return TrainingData(examples, cache, seed=0, global_batch=global_batch, flow=FlowConfig())


def test_epochs_give_each_id_its_own_tensors_unstretched(tiny_base, mixed, tmp_path):
    backbone = load_base(str(tiny_base))
    data, seen = data_of(backbone, mixed, tmp_path), Counter()
    by_id = {sample.id: sample for sample in mixed.samples}
    for step in range(12):
        batch = data.batch(step, range(3))
        assert list(batch.ids) == data.ids(step)
        assert len({SIZES[name] for name in batch.ids}) == 1
        for row, name in enumerate(batch.ids):
            seen[name] += 1
            sample, size = by_id[name], SIZES[name]
            for kind in ("context", "target"):
                image = fitted(read_image(mixed.root / getattr(sample, kind))[None], size)
                assert torch.equal(getattr(batch, kind)[row], backbone.encode_images(image)[0])
            states, _ = backbone.encode_prompts([sample.prompt])
            assert torch.equal(batch.prompt_embeds[row], states[0])
            masks = mixed.masks(sample)
            window = crop_window(*masks.shape[-2:], size)
            assert window.height / window.width == pytest.approx(size[0] / size[1], rel=0.03)
            grid = mask_to_grid(window.of(masks), size[0] // 4, size[1] // 4)
            assert torch.equal(batch.plan.masks[row], grid)
            assert batch.plan.valid[row].all()
    assert set(seen.values()) == {12}


def test_training_feeds_the_transformer_what_the_stock_pipeline_does(tiny_base, mixed, tmp_path):
    """In a bucket that is no square, for the same picture, prompt and noisy latents."""
    backbone = load_base(str(tiny_base))
    inject(backbone.transformer, "regionroute", num_experts=2, rank=2, alpha=2.0)  # they add 0 yet
    with quiet():
        stock = FluxKontextPipeline.from_pretrained(tiny_base)
    stock.set_progress_bar_config(disable=True)
    calls = {"stock": [], "ours": []}
    for name, model in (("stock", stock.transformer), ("ours", backbone.transformer)):
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: calls[name].append(kwargs), with_kwargs=True
        )
    data, sample, size = data_of(backbone, mixed, tmp_path, 1), mixed.samples[0], SIZES["pair-0"]
    step = next(step for step in range(9) if data.ids(step) == [sample.id])
    batch = data.batch(step, range(1))
    noisy = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(3))
    stock(
        image=fitted(read_image(mixed.root / sample.context)[None], size),
        prompt=sample.prompt, height=size[0], width=size[1], max_area=size[0] * size[1],
        sigmas=[0.6], num_inference_steps=1, guidance_scale=1.0, latents=pack(noisy),
        max_sequence_length=32, output_type="latent", _auto_resize=False,
    )  # fmt: skip
    sigma = calls["stock"][0]["timestep"].float()
    assert 0.3 < sigma < 0.9
    noise = (noisy - (1 - sigma) * batch.target) / sigma  # so that the path passes through it
    batch = dataclasses.replace(batch, noise=noise, sigma=sigma)
    with torch.no_grad(), training_step(backbone.transformer, batch, RunConfig()):
        pass
    [ours], theirs = calls["ours"], calls["stock"][0]
    tensors = {key for key, value in theirs.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 7
    for key in tensors:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=0, msg=key)
    count = size[0] * size[1] // 16
    assert ours["img_ids"][:, 0].tolist() == [0.0] * count + [1.0] * count  # the context's frame
    assert ours["img_ids"].amax(0).tolist() == [1, size[0] // 4 - 1, size[1] // 4 - 1]


def test_a_run_says_what_it_sees_and_how_much_is_cut_off(runs, mixed, capsys, tiny_base):
    texts = ["train.preview_every=6", "base.max_text_length=24"]
    assert runs("run", *texts) == 0
    said = capsys.readouterr().out
    assert "images at 28x40 (1), 32x32 (1), 40x28 (1); edges cut off: " in said
    assert (runs.output("run") / "previews" / "step-000006.png").is_file()
    # One text length in training and at inference.
    editor = Editor(load_base(str(tiny_base)), runs.output("run") / "experts")
    lengths = []
    editor.backbone.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["encoder_hidden_states"].shape[1]),
        with_kwargs=True,
    )
    photo = mixed.context(mixed.samples[0])
    assert (
        editor.edit(photo, EditRequest("square", "pixel-art")).image.shape
        == photo.shape
        == (3, 44, 64)
    )
    assert set(lengths) == {24}
    [text] = (runs.folder / "cache" / "texts").glob("*.safetensors")
    assert Cache(runs.folder / "cache").absent("texts", ["0" * 16]).size == 1
    assert text.stat().st_size > 24 * 32 * 4


def test_losses_do_not_depend_on_how_a_batch_is_shared(runs, mixed):
    assert runs("one") == 0
    assert runs("four", "train.accumulation=4") == 0
    assert runs.difference("one", "four") < 1e-5
    assert len({round(row["flow"], 6) for row in runs.losses("one")}) > 2


def test_a_stopped_run_continues_bit_for_bit_in_the_same_buckets(runs, mixed, monkeypatch):
    assert runs("whole") == 0
    original = Trainer._after_step

    def stop(self, step, *, stopping):
        original(self, step, stopping=stopping)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", stop)
        assert runs("halves") == 143
    assert runs("halves") == 0
    assert runs.difference("whole", "halves") == 0


def test_without_buckets_all_are_cut_to_one_size(runs, mixed, capsys):
    assert runs("run", "data.buckets=false", "train.steps=1") == 0
    assert "images at 32x32 (3); edges cut off: " in capsys.readouterr().out


def test_an_object_that_would_be_cut_off_is_left_out(runs, mixed, tiny_manifest, capsys):
    lost = dataclasses.replace(mixed.samples[0].regions[0], box=(0, 0, 44, 1))
    sample = dataclasses.replace(mixed.samples[0], regions=(lost,))
    write_manifest(tiny_manifest, [sample, *mixed.samples[1:]])
    assert runs("run", "data.buckets=false", "train.steps=1") == 0
    assert "1 samples are skipped: an object lies at an edge" in capsys.readouterr().out


def test_a_second_start_encodes_nothing_and_gives_the_same_losses(runs, mixed, encodings, capsys):
    assert runs("first") == 0
    assert "0 entries cached, 12 to encode" in capsys.readouterr().out
    assert encodings == {"encode_images": 6, "encode_prompts": 3}
    assert runs("second") == 0  # another output, the same data.cache
    assert "12 entries cached, 0 to encode" in capsys.readouterr().out
    assert encodings == {"encode_images": 6, "encode_prompts": 3}
    assert runs.difference("first", "second") == 0


def test_of_old_and_new_samples_only_the_new_are_encoded(runs, mixed, tiny_manifest, encodings):
    write_manifest(tiny_manifest, mixed.samples[:2])
    assert runs("old", "train.steps=1") == 0
    encodings.clear()
    write_manifest(tiny_manifest, mixed.samples)
    assert runs("new", "train.steps=1") == 0
    assert encodings == {"encode_images": 2, "encode_prompts": 1}


def test_interrupted_caching_goes_on_where_it_was(runs, mixed, encodings, monkeypatch):
    counted = Backbone.encode_images

    def interrupted(self, *given):
        if encodings["encode_images"] == 3:
            raise KeyboardInterrupt
        return counted(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "encode_images", interrupted)
        assert runs("run", "train.steps=1") == 130
    assert runs("run", "train.steps=1") == 0
    assert encodings == {"encode_images": 6, "encode_prompts": 3}


def test_a_manifest_in_shards_trains_alike(runs, mixed, tiny_manifest, encodings):
    assert runs("one") == 0
    encodings.clear()
    lines = (tiny_manifest / "manifest.jsonl").read_text().splitlines(keepends=True)
    (tiny_manifest / "manifest.jsonl").unlink()
    for number, line in enumerate(lines):
        (tiny_manifest / f"manifest-{number:03d}.jsonl").write_text(line)
    assert runs("several", "train.preview_every=6") == 0
    assert runs.difference("one", "several") == 0
    assert encodings["encode_images"] == 2  # of the preview's pair


class Live:
    """In the cache's place: encodes whenever it is asked."""

    name, remarks = "nowhere", ()

    def __init__(self, folder):
        self.folder = folder

    def absent(self, kind, keys):
        return keys

    def fill(self, entries, **_):
        self.makers = {(entry.kind, entry.key): entry.make for entry in entries}
        return []

    def adopt(self, written):
        pass

    def save_index(self):
        pass

    def load(self, kind, key):
        return self.makers[kind, key]()


def test_the_cache_changes_no_loss(runs, mixed, encodings, monkeypatch):
    assert runs("cached") == 0
    encodings.clear()
    with monkeypatch.context() as patch:
        patch.setattr(train.prepare, "open_cache", lambda name, default, memory: Live(Path(name)))
        patch.setattr(train.prepare, "release_encoders", lambda backbone, **_: None)
        assert runs("live") == 0
    assert encodings["encode_images"] >= 6 * 4 * 2  # steps, pairs, pictures: nothing was kept
    assert runs.difference("cached", "live") == 0


def test_encoders_are_gone_while_it_trains(runs, mixed, monkeypatch):
    references, alive = [], []
    load, run = train.inputs.load_base, Trainer.run

    def watched(*arguments, **options):
        backbone = load(*arguments, **options)
        networks = (backbone.vae, backbone.text_encoder, backbone.text_encoder_2)
        references.extend(weakref.ref(network) for network in networks)
        return backbone

    def count(self):
        gc.collect()
        alive.extend(reference() for reference in references)
        return run(self)

    monkeypatch.setattr(train.inputs, "load_base", watched)
    monkeypatch.setattr(Trainer, "run", count)
    assert runs("run", "train.steps=1") == 0
    assert alive == [None] * 3
