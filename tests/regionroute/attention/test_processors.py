"""Processors that are swapped in: called as the block calls its own, and always put back."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.models.transformers.transformer_flux2 import Flux2ParallelSelfAttnProcessor

from regionroute.attention.processors import BlockProcessor, called_as, replaced
from regionroute.diffusion.families import find_transformer


class Usual(BlockProcessor):
    """What the stock processors compute, with its calls counted."""

    calls = 0

    def attention(self, query, key, value, mask, rotary):
        self.calls += 1
        turned = [apply_rotary_emb(x, rotary, sequence_dim=1) for x in (query, key)]
        every = [x.transpose(1, 2) for x in (*turned, value)]
        return F.scaled_dot_product_attention(*every, attn_mask=mask).transpose(1, 2)


def test_blocks_of_both_kinds_compute_the_same_and_get_their_own_back(flux, inputs):
    module, family = find_transformer(flux)
    blocks = family.blocks(module)
    stock = {name: attn.get_processor() for name, attn in blocks.items()}
    [usual] = flux(**inputs)
    made = {name: Usual(family) for name in blocks}
    with replaced(blocks, family, made.__getitem__):
        [found] = flux(**inputs)
    assert torch.equal(found, usual)
    assert [one.calls for one in made.values()] == [1] * 4
    assert {name: attn.get_processor() for name, attn in blocks.items()} == stock


def test_a_block_without_an_argument_for_the_text_passes_its_mask_by_place(monkeypatch):
    given = []
    monkeypatch.setattr(
        BlockProcessor, "__call__", lambda self, *arguments: given.append(arguments)
    )
    own = Usual(family=None)
    assert called_as(FluxAttnProcessor(), own) is own
    called_as(Flux2ParallelSelfAttnProcessor(), own)("block", "states", "mask", "rotary")
    assert given == [("block", "states", None, "mask", "rotary")]


def test_an_error_leaves_the_blocks_as_they_were(flux, inputs):
    module, family = find_transformer(flux)
    blocks = family.blocks(module)
    stock = {name: attn.get_processor() for name, attn in blocks.items()}
    with pytest.raises(ZeroDivisionError), replaced(blocks, family, lambda name: Usual(family)):
        raise ZeroDivisionError

    def make(name):
        if name.startswith("single"):
            raise ZeroDivisionError
        return Usual(family)

    with pytest.raises(ZeroDivisionError), replaced(blocks, family, make):
        pytest.fail("the block ran")
    assert {name: attn.get_processor() for name, attn in blocks.items()} == stock

    name = next(iter(blocks))
    blocks[name].set_processor(called_as(stock[name], Usual(family)))
    with (
        pytest.raises(ValueError, match=f"{name}: cannot record with a Usual"),
        replaced(blocks, family, make),
    ):
        pytest.fail("the block ran")
