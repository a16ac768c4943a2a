"""The image encoder of an embedded base: features in the space of word vectors.

A small base sees too few photos to learn by itself what a dog looks like. EfficientNet-Lite0
(frozen, trained on ImageNet) provides features at three scales and, through the word vectors of its
1,000 class names, evidence for words that no training photo was labelled with. A small head merges
both, trained by `train/pretrain/train_image_encoder.py` so that

    score(x, word) = ⟨f(x), M·e(word)⟩ + objectness(x)

says how much of the object is at x: e is the word's vector in the base's own text encoder, M the
word map. The base reads f and the objectness as latent channels of the context image.

A small object is hard to tell at the size of a small base. So the encoder looks at the photo in its
own detail, up to `zoom` times that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.models.efficientnet_lite import CLASSES, EfficientNetLite, load_efficientnet_lite

STRIDE = 8  # pixels of the base's image between outputs
BLOCKS = (4, 10, 15)  # the last blocks at strides 8, 16 and 32
SUREST = 4  # positions whose mean score says whether an object is there
# Taken off the sum of score and class evidence, so that presence does not saturate, and off that of
# words that training images were labelled with, which is high by habit where nothing is.
DOUBT, SEEN = 3.25, 1.0
CLIP = 4.0  # standardised features beyond this many deviations are clipped


class ImageEncoder(nn.Module):
    """Photos to word-aligned features, one vector for every 8x8 pixels of the base's image.

    The backbone is not part of the state: its weights come from the installed package.

    Args:
        channels: of the output: the features and, last, the objectness.
        width: channels inside the head.
        words: length of a word vector.
        vocabulary: words that training images were labelled with.
        zoom: size at which the backbone sees a photo, in multiples of the base's; 2 in files that
            do not tell.
    """

    def __init__(
        self, channels: int, width: int, words: int, vocabulary: Sequence[str] = (), zoom: int = 2
    ) -> None:
        super().__init__()
        self.sizes = {"channels": channels, "width": width, "words": words, "zoom": zoom}
        self.vocabulary = tuple(vocabulary)
        near, middle, far = (EfficientNetLite.channels(block) for block in BLOCKS)
        self.near = nn.Conv2d(near, width, 1)
        self.middle = nn.Conv2d(middle, width, 1)
        self.far = nn.Conv2d(far, width, 1)
        self.evidence = nn.Conv2d(words, width, 1)
        self.blocks = nn.Sequential(_Block(width), _Block(width))
        self.out = nn.Conv2d(width, channels, 1)
        self.zero_shot = nn.Conv2d(words, channels - 1, 1, bias=False)
        self.word_map = nn.Parameter(torch.zeros(channels - 1, words))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("class_vectors", torch.zeros(CLASSES, words))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.class_vectors: Tensor
        self.mean: Tensor
        self.deviation: Tensor

    def forward(self, photos: Tensor, size: tuple[int, int]) -> Tensor:
        """Features, each channel standardised over the training images and clipped.

        Args:
            photos: [B,3,H,W] in [-1,1], of any size.
            size: (H',W') at which the base sees them, multiples of 8.

        Returns:
            [B,channels,H'/8,W'/8].
        """
        found = self.head(*self.views(photos, size))
        mean, deviation = self.mean[:, None, None], self.deviation[:, None, None]
        return ((found - mean) / deviation).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def views(self, photos: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the head sees of photos.

        Args:
            photos: [B,3,H,W] in [-1,1], of any size.
            size: (H',W') at which the base sees them, multiples of 8.

        Returns:
            Feature maps near [B,40,h,w], middle [B,112,h,w] with h = H'/8, w = W'/8, far
            [B,320,zoom·H'/32,zoom·W'/32] and the class evidence [B,words,…] of far's size, both
            rounded up.
        """
        backbone = load_efficientnet_lite().to(photos.device)  # float32, whatever the head's type
        zoom, (height, width) = self.sizes["zoom"], size
        zoomed = F.interpolate(
            photos.float(),
            (zoom * height, zoom * width),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        # Convolutions of one channel each are faster on a CPU with the channels last.
        zoomed = zoomed.contiguous(memory_format=torch.channels_last)
        (near, middle, far), logits = backbone(zoomed, BLOCKS)
        deviation, mean = torch.std_mean(logits, 1, keepdim=True)
        strong = ((logits - mean) / deviation - 2).relu()
        evidence = torch.einsum("bchw,cd->bdhw", strong, self.class_vectors.float())
        grid = (height // STRIDE, width // STRIDE)
        near, middle = (F.adaptive_avg_pool2d(part, grid) for part in (near, middle))
        near, middle, far, evidence = (
            part.to(photos.dtype) for part in (near, middle, far, evidence)
        )
        return near, middle, far, evidence

    def head(self, near: Tensor, middle: Tensor, far: Tensor, evidence: Tensor) -> Tensor:
        """Raw features and objectness [B,channels,h,w] from the maps of `views`."""
        size = middle.shape[-2:]
        coarse = self.far(far) + self.evidence(evidence)
        x = self.near(near) + self.middle(middle) + _resized(coarse, size)
        found: Tensor = self.out(self.blocks(x))
        return found + F.pad(_resized(self.zero_shot(evidence), size), (0, 0, 0, 0, 0, 1))

    @torch.no_grad()
    def presence(
        self,
        photos: Tensor,
        size: tuple[int, int],
        words: Tensor,
        phrases: Sequence[Sequence[str]],
    ) -> Tensor:
        """How sure it is that objects are in photos.

        The score plus the class evidence for the word, which training cannot bias.

        Args:
            photos: [B,3,H,W] in [-1,1], of any size.
            size: (H',W') at which the base sees them, multiples of 8.
            words: unit word vectors [B,N,words].
            phrases: N objects for each of the B photos.

        Returns:
            [B,N] in [0,1], the mean probability at the four surest positions.
        """
        views = self.views(photos, size)
        raw, evidence = self.head(*views), views[-1]
        known = torch.einsum("bdhw,bnd->bnhw", evidence, words)
        scores = self.scores(raw, words).float() + _resized(known.float(), raw.shape[-2:])
        seen = [[float(phrase.casefold() in self.vocabulary) for phrase in row] for row in phrases]
        doubt = DOUBT + SEEN * scores.new_tensor(seen)
        surest = (scores - doubt[..., None, None]).sigmoid().flatten(2)
        return surest.topk(min(SUREST, surest.shape[2])).values.mean(2)

    def raw(self, features: Tensor) -> Tensor:
        """Undo the standardisation of `forward`, up to what was clipped: [B,channels,h,w]."""
        return features * self.deviation[:, None, None] + self.mean[:, None, None]

    def scores(self, raw: Tensor, words: Tensor) -> Tensor:
        """Logits of words at every position.

        Args:
            raw: [B,channels,h,w], from `head`.
            words: unit word vectors [B,N,words].

        Returns:
            [B,N,h,w].
        """
        product = torch.einsum("bchw,bnc->bnhw", raw[:, :-1], words @ self.word_map.T)
        return product + raw[:, -1:] + self.bias


class _Block(nn.Module):
    """x + mix(filter(x)), with what the whole image holds added in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.filter = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.context = nn.Linear(width, 2 * width)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(x)
        wide = self.mix(self.filter(inner)) + self.context(inner.mean((2, 3)))[:, :, None, None]
        return x + self.project(F.gelu(wide))


def word_vectors(text_encoder: Any, tokenizer: Any, phrases: Sequence[str]) -> Tensor:
    """Unit vectors [N,D]: means of the vectors that a text encoder has for a phrase's tokens."""
    table = text_encoder.get_input_embeddings().weight.detach().float()
    rows = [
        table[tokenizer(phrase, add_special_tokens=False).input_ids].mean(0) for phrase in phrases
    ]
    return F.normalize(torch.stack(rows), dim=-1)


def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
