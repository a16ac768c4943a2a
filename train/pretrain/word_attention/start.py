"""Where word heads start: attention that is the image encoder's own score of the word.

The score of a word at a token is ⟨f, M·e⟩ + o (see `regionroute.models.image_encoder`). What enters
the first block's attention tells both sides: f and the objectness o of a context token, and M·e at
the tokens of a phrase. Least squares finds the query map and the key map. Three things would spoil
the fit: the block's modulation mixes the prompt into the queries (`free_of_text`), RMS norms keep
the direction of a query but not how strong the evidence is (a constant channel keeps it), and
rotary embedding turns most channels (`channels` finds those that it hardly turns).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.models.backbone import Backbone
from train.pretrain.word_attention.heads import WordHeads, context_features
from train.pretrain.word_attention.images import Images
from train.pretrain.word_attention.prompts import (
    LOOKS,
    any_prompt,
    named,
    nowhere,
    phrase_tokens,
    token_ids,
)

BATCH, BATCHES = 16, 40  # of images
PROMPTS = 128  # for the modulation
SIGMAS = 21  # noise levels at which the modulation is fitted
PURE_NOISE = 20.0  # weight of σ = 1 among them, where edits of one step are
OTHERS = 0.15  # fraction of the other text tokens that keys are fitted on
TURNED = 0.8  # radians across an image: channels that rotary embedding turns less are used
CONSTANT = 1.5  # the constant channel of a query, in multiples of the features' norm
RIDGE = 1e-5  # relative to the mean variance of the inputs
_RARE = 1e-6  # variance below which a direction of the features does not count


@dataclass(frozen=True)
class Sides:
    """What queries and keys are fitted on.

    Attributes:
        image: inputs of the query map at context tokens, [N,D].
        features: those of the image encoder there, [N,c].
        objectness: likewise, [N].
        text: inputs of the key map at text tokens, [T,D].
        words: M·e of the phrase that a token belongs to, [T,c]; 0 elsewhere.
        asked: whether it belongs to one, bool [T].
    """

    image: Tensor
    features: Tensor
    objectness: Tensor
    text: Tensor
    words: Tensor
    asked: Tensor


@torch.no_grad()
def start_heads(
    heads: WordHeads, images: Images, words: Sequence[str], seed: int, sharpness: float
) -> None:
    """Sets the heads' queries, keys and norms, and what modulates them, in place.

    Args:
        heads: of a base with an image encoder.
        images: to fit on.
        words: to fit on.
        seed: of the choice of images, words and prompts.
        sharpness: change of a map's logarithm per unit of the encoder's score.
    """
    rng = random.Random(seed)
    free_of_text(heads.base, [any_prompt(words, rng) for _ in range(PROMPTS)])
    sides = observed(heads, images, words, rng)
    features, vectors = balanced(sides)
    shown = least_squares(sides.image, torch.cat([features, sides.objectness[:, None]], 1))
    asked = least_squares(sides.text, torch.cat([vectors, sides.asked[:, None].float()], 1))
    _place(heads, sides, shown, asked, images.masks.shape[-1], sharpness)


def _place(
    heads: WordHeads, sides: Sides, shown: Tensor, asked: Tensor, side: int, sharpness: float
) -> None:
    """Deals the directions to the heads, the strongest to the channels that turn least.

    Args:
        heads: changed in place.
        sides: for the lengths of queries and keys.
        shown: affine map of the queries, [c+1,D+1], the last row is the objectness.
        asked: affine map of the keys, [c+1,D+1], the last row says whether a token is asked for.
        side: tokens along an image.
        sharpness: see `start_heads`.
    """
    attention, count = heads.attention, len(heads.numbers)
    width, query, key = attention.head_dim, attention.to_q, attention.add_k_proj
    calm, free = channels(heads.base.transformer, side)
    found = _affine(sides.image, shown)[:, :-1]
    wanted = _affine(sides.text[sides.asked], asked)[:, :-1]
    most = min(len(shown) - 1, count * (len(calm) - 1))
    parts = [list(range(number, most, count)) for number in range(count)]
    strong, clear = (
        torch.stack([_length(values[:, part]) for part in parts]).mean()
        for values in (found, wanted)
    )
    lengths = []
    for head, part in zip(heads.numbers, parts, strict=True):
        own = slice(head * width, (head + 1) * width)
        for linear in (query, attention.to_k, key):
            linear.weight[own], linear.bias[own] = 0, 0
        for channel, row in zip(calm[1:], part, strict=False):
            _set_row(query, head * width + channel, shown[row])
            _set_row(key, head * width + channel, asked[row])
        _set_row(query, head * width + calm[0], shown[-1] / (count * clear))
        _set_row(key, head * width + calm[0], asked[-1] * clear)
        query.bias[head * width + free] = CONSTANT * strong
        queries = F.linear(sides.image, query.weight[own], query.bias[own])
        keys = F.linear(sides.text[sides.asked], key.weight[own], key.bias[own])
        lengths.append(_length(queries) * _length(keys))
    # RMS norms make both vectors √width long, and attention divides by that: the gain undoes both,
    # and that a map is the geometric mean of the heads, each of which has a part of the score.
    gain = sharpness * count * torch.stack(lengths).mean() / math.sqrt(width)
    for norm in (attention.norm_q, attention.norm_added_k):
        norm.weight.fill_(gain.sqrt())


def free_of_text(base: Backbone, prompts: Sequence[str]) -> None:
    """Makes what modulates the first block's attention depend on the noise level alone, in place.

    The shift and scale of its inputs are refitted to their means over prompts.
    """
    transformer = base.transformer
    block = transformer.transformer_blocks[0]
    pooled = base.text_encoder(token_ids(base, prompts)[0]).pooler_output
    sigmas = torch.linspace(0, 1, SIGMAS)
    inputs = torch.stack([F.silu(_embedded(transformer, sigma, pooled)) for sigma in sigmas])
    weight = torch.ones(SIGMAS, 1).expand(SIGMAS, len(prompts)).clone()
    weight[-1] = PURE_NOISE
    for norm in (block.norm1, block.norm1_context):
        linear = norm.linear
        rows = linear.out_features // 3  # shift and scale are the first two of six
        before = F.linear(inputs, linear.weight[:rows], linear.bias[:rows])
        mean = before.mean(1, keepdim=True).expand_as(before)
        fitted = least_squares(inputs.flatten(0, 1), mean.flatten(0, 1), weight.flatten())
        linear.weight[:rows], linear.bias[:rows] = fitted[:, :-1], fitted[:, -1]


def observed(heads: WordHeads, images: Images, words: Sequence[str], rng: random.Random) -> Sides:
    """The inputs of the first block's attention, and what is to be read from them."""
    base = heads.base
    encoder = base.vae.image_encoder
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(BATCHES):
        chosen = [rng.randrange(len(images.words)) for _ in range(BATCH)]
        asked = [rng.choice(words) for _ in chosen]
        looks = [rng.choice(LOOKS) for _ in chosen]
        batch = named(images, chosen, asked, nowhere(images, BATCH), looks)
        with heads.inputs() as seen:
            heads.maps(batch, torch.zeros_like(batch.context))
        raw = encoder.raw(context_features(base, batch.context)).flatten(2).transpose(1, 2)
        text = seen["text"]
        member = torch.zeros(text.shape[:2], dtype=torch.bool)
        for row, places in enumerate(phrase_tokens(base, batch.prompts)):
            member[row, places] = True
        kept = member | (torch.tensor([[rng.random() for _ in row] for row in member]) < OTHERS)
        vectors = base.word_vectors(asked) @ encoder.word_map.T
        targets = vectors[:, None] * member[..., None]
        image = seen["image"][:, -raw.shape[1] :]  # the noisy image's tokens come first
        parts.append(
            (
                image.flatten(0, 1), raw[..., :-1].flatten(0, 1), raw[..., -1].flatten(),
                text[kept], targets[kept], member[kept],
            )
        )  # fmt: skip
    return Sides(*(torch.cat(part) for part in zip(*parts, strict=True)))


def balanced(sides: Sides) -> tuple[Tensor, Tensor]:
    """Features and word vectors in coordinates in which both have the same, falling variances.

    Their inner products stay what they are.

    Returns:
        [N,c] and [T,c].
    """
    words = sides.words[sides.asked]
    eye = _RARE * torch.eye(words.shape[1])
    root = torch.linalg.cholesky(torch.cov(sides.features.T) + eye)
    spread = words.T @ words / len(words) + eye
    directions, strengths, _ = torch.linalg.svd(root.T @ spread @ root)
    scale = strengths.clamp(min=_RARE**2) ** 0.25
    to_features = (directions * scale).T @ torch.linalg.inv(root)
    to_words = (directions / scale).T @ root.T
    return sides.features @ to_features.T, sides.words @ to_words.T


def channels(transformer: Any, side: int) -> tuple[list[int], int]:
    """The channels of a head that can compare an image token with a text token.

    Returns:
        Those that rotary embedding turns less than `TURNED` across an image of side x side tokens,
        the calmest first, and one that it turns fast.
    """
    theta, sizes = transformer.pos_embed.theta, transformer.pos_embed.axes_dim
    turned: list[float] = []
    for axis, size in enumerate(sizes):
        distance = side if axis else 1  # the context image's first id is 1, the text's 0
        for pair in range(size // 2):
            turned += [distance * theta ** (-2 * pair / size)] * 2
    order = sorted(range(len(turned)), key=lambda channel: turned[channel])
    return [channel for channel in order if turned[channel] < TURNED], order[-1]


def least_squares(inputs: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """The affine map [c,D+1] from inputs [N,D] to wanted [N,c], the bias last.

    Args:
        inputs: [N,D].
        wanted: [N,c].
        weight: of each row, [N]; None: equal.
    """
    rows = F.pad(inputs, (0, 1), value=1.0).double()
    weighted = rows if weight is None else rows * weight[:, None]
    products = rows.T @ weighted
    ridge = RIDGE * products.diagonal()[:-1].mean() * torch.eye(len(products))
    ridge[-1, -1] = 0
    return torch.linalg.solve(products + ridge, weighted.T @ wanted.double()).T.float()


def _affine(inputs: Tensor, mapping: Tensor) -> Tensor:
    return F.linear(inputs, mapping[:, :-1], mapping[:, -1])


def _set_row(linear: Any, row: int, values: Tensor) -> None:
    linear.weight[row], linear.bias[row] = values[:-1], values[-1]


def _length(vectors: Tensor) -> Tensor:
    """Mean length of vectors [N,c]."""
    return vectors.norm(dim=1).mean()


def _embedded(transformer: Any, sigma: Tensor, pooled: Tensor) -> Tensor:
    """What modulates the blocks at a noise level, [P,D]."""
    times = sigma.expand(len(pooled)) * 1000
    guidance = [torch.full_like(times, 1000)] if transformer.config.guidance_embeds else []
    embedded: Tensor = transformer.time_text_embed(times, *guidance, pooled)
    return embedded
