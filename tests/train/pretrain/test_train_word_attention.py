"""Training of the first block's word heads: what it learns, what it leaves, resume, mistakes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from regionroute.errors import UserError
from regionroute.models.embedded import nano_folder
from regionroute.models.loading import load_base
from train.pretrain import train_word_attention as training
from train.pretrain.train_word_attention import main
from train.pretrain.word_attention.heads import WordHeads

SMALL = [
    "compositions.side=32",
    "compositions.count=12",
    "compositions.held_out=4",
    "compositions.photos.layouts={photo: 0.5, halves: 0.5}",
    "batch=4",
    "warmup=2",
    "log_every=1",
    "save_every=2",
    "validate_every=100",
    "threads=1",
]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def arguments(bank_case, tmp_path_factory):
    bank = bank_case.make_bank(tmp_path_factory.mktemp("words"))
    return [f"compositions.bank={bank}", *SMALL]


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory):
    """The output folder of forty steps."""
    out = tmp_path_factory.mktemp("trained")
    assert main([f"output={out}", *arguments, "steps=40"]) == 0
    return out


def test_attention_comes_to_lie_on_the_object(trained):
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    cover = [row["cover"] for row in rows if "cover" in row]
    assert sum(cover[-5:]) < 0.9 * sum(cover[:5])
    assert {"iou", "peak", "overlap", "auc"} < rows[-1].keys()
    assert (trained / "maps.png").exists()


def test_only_the_heads_the_norms_and_the_text_layers_change(trained):
    before, after = (
        load_file(folder / WEIGHTS) for folder in (nano_folder("nano-photos"), trained / "base")
    )
    first = "transformer_blocks.0.attn."
    changed = {name for name in before if not torch.equal(before[name].half(), after[name])}
    assert changed == {
        *(
            f"{first}{layer}.{kind}"
            for layer in ("to_q", "to_k", "add_k_proj")
            for kind in ("weight", "bias")
        ),
        f"{first}norm_q.weight",
        f"{first}norm_added_k.weight",
        "context_embedder.weight",
        "context_embedder.bias",
    }
    rows = (before[f"{first}to_q.weight"].half() != after[f"{first}to_q.weight"]).any(1)
    untouched = torch.arange(32, 64), torch.arange(96, 128)  # heads 1 and 3
    assert not rows[torch.cat(untouched)].any()
    assert rows[:32].any()


def test_the_base_that_it_writes_edits(trained):
    base = load_base(str(trained / "base"))
    states, _ = base.encode_prompts(["make the dog in neon style, keep other area unchanged"])
    assert states.isfinite().all()
    assert not (trained / "base" / "experts").exists()


def test_a_stopped_run_gives_the_same_base(arguments, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([f"output={whole}", *arguments, "steps=4"]) == 0
    real, calls = training._losses, []

    def cut_off(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(training, "_losses", cut_off)
    assert main([f"output={parts}", *arguments, "steps=4"]) == 130
    monkeypatch.setattr(training, "_losses", real)
    assert main([f"output={parts}", *arguments, "steps=4"]) == 0
    assert (parts / "base" / WEIGHTS).read_bytes() == (whole / "base" / WEIGHTS).read_bytes()


def test_text_states_stay_where_they_were_without_training():
    heads = WordHeads(load_base("nano-photos"), (0,), gain=1.0, text_share=1.0)
    ids = heads.base.tokenizer_2(["make the dog red"], return_tensors="pt").input_ids
    assert heads.moved(ids).item() < 1e-9


def test_a_base_without_an_image_encoder_is_refused():
    with pytest.raises(UserError, match="image encoder"):
        WordHeads(load_base("nano"), (0,), gain=1.0, text_share=1.0)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="heads are 0 to 5"):
        WordHeads(load_base("nano-photos"), (0, 7), gain=1.0, text_share=1.0)
