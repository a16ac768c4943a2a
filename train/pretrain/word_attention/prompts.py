"""What word attention is trained on: images, each with a word in a prompt."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regionroute.data.prompts import Prompt, build_prompt
from regionroute.models.backbone import Backbone
from train.pretrain.photo_pairs import HIGHLIGHT_PROMPTS, RECOLOUR_PROMPTS, STYLE_PROMPTS
from train.pretrain.word_attention.images import Images

LOOKS = ("watercolour", "pixel-art", "starry night", "line-art", "neon", "woodcut", "red", "blue")


@dataclass(frozen=True)
class Named:
    """A batch of images, each with a word.

    Attributes:
        context: latents [B,C,h,w].
        prompts: which name the word.
        masks: covered fractions [B,h/2,w/2], 0 where the word is absent.
    """

    context: Tensor
    prompts: list[Prompt]
    masks: Tensor


class Words:
    """The words of the images, and which of them may be absent together.

    Args:
        base: for the word vectors.
        images: the images.
        farthest: cosine with a word of the image from which a word is not asked for as absent.
        surroundings: words that may be in an image without being labelled, never absent.
    """

    def __init__(
        self, base: Backbone, images: Images, farthest: float, surroundings: Collection[str] = ()
    ) -> None:
        self.all = sorted({word for row in images.words for word in row})
        self.may_be_absent = torch.tensor([word not in surroundings for word in self.all])
        self.near = base.word_vectors(self.all) @ base.word_vectors(self.all).T >= farthest
        self.number = {word: number for number, word in enumerate(self.all)}

    def absent(self, words: list[str], rng: random.Random) -> str | None:
        """A word that may be absent and is not close to any of `words`; None: there is none."""
        here = [self.number[word] for word in words if word in self.number]
        far = (self.may_be_absent & ~self.near[here].any(0)).nonzero().flatten().tolist()
        return self.all[rng.choice(far)] if far else None


def named(
    images: Images, chosen: Sequence[int], words: Sequence[str], masks: Tensor, looks: Sequence[str]
) -> Named:
    """Images with words, as edits name them.

    Args:
        images: all images.
        chosen: B of them.
        words: B words.
        masks: see `Named`.
        looks: B styles or colours.
    """
    prompts = [build_prompt([pair]) for pair in zip(words, looks, strict=True)]
    return Named(images.latents[list(chosen)].float(), prompts, masks)


def any_prompt(words: Sequence[str], rng: random.Random) -> str:
    """A prompt of the base's training, or of an edit."""
    word, look = rng.choice(words), rng.choice(LOOKS)
    forms = [*HIGHLIGHT_PROMPTS, *RECOLOUR_PROMPTS, *STYLE_PROMPTS]
    forms += [build_prompt([("{word}", "{look}")]).text] * len(forms)
    return rng.choice(forms).format(word=word, look=look)


def token_ids(base: Backbone, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """CLIP and T5 token ids, [P,T] each, padded as the Kontext pipeline pads."""
    first, second = (
        tokenizer(
            list(prompts),
            padding="max_length",
            max_length=base.text_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for tokenizer in base.tokenizers()
    )
    return first, second


def phrase_tokens(base: Backbone, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Positions of each prompt's object among its T5 tokens."""
    return [base.token_indices(prompt.text, prompt.object_spans[0]) for prompt in prompts]


def nowhere(images: Images, count: int) -> Tensor:
    """Masks of absent words, [count,h/2,w/2]."""
    return torch.zeros(count, *images.masks.shape[-2:])
