"""Batches of training: style tokens, cached latents, noise.

Noise and noise levels depend on the seed, the step and the place in the global batch alone, never
on how many processes or micro-batches share it; so does the order of samples, see
`train.data.order`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regionroute.attention import AttentionPlan
from regionroute.data.manifest import EditSample, Manifest, manifest_file
from regionroute.data.prompts import find_spans
from regionroute.diffusion.flow import draw_sigmas
from regionroute.errors import UserError
from train.data.cache import Cache
from train.data.examples import TrainingExample, TrainingExamples
from train.data.order import BatchOrder, BlockShuffle, members_of, seeded
from train.step import Batch

if TYPE_CHECKING:
    from regionroute.config.losses import FlowConfig
    from regionroute.models.backbone import Backbone
    from train.data.references import References

__all__ = [
    "StyleTokens",
    "TrainingData",
    "TrainingExample",
    "TrainingExamples",
    "members_of",
    "pad_token_index",
    "seeded",
    "stream",
]

WHOLE = 0.999  # share of the image from which a mask is all of it


class StyleTokens:
    """Finds the tokens of the style phrases of a manifest's prompts.

    Args:
        backbone: finds them, in its own tokens and text length.
        manifest: names the file in errors.
    """

    def __init__(self, backbone: Backbone, manifest: Manifest) -> None:
        self._where = manifest_file(manifest.root)

        @cache  # a manifest has few different prompts
        def indices(prompt: str, span: tuple[int, int]) -> tuple[int, ...]:
            return tuple(backbone.token_indices(prompt, span))

        self._indices = indices

    def of(self, sample: EditSample) -> tuple[tuple[int, ...], ...]:
        """For each region the positions of its style phrase.

        Raises:
            UserError: a phrase is missing, ambiguous or cut off.
        """
        try:
            return tuple(
                self._indices(
                    sample.prompt,
                    region.style_span or find_spans(sample.prompt, region.object, region.style)[1],
                )
                for region in sample.regions
            )
        except UserError as error:
            raise UserError(f"{self._where}: sample {sample.id!r}: {error}") from error


class TrainingData:
    """Batches of examples whose tensors are in the cache.

    Args:
        examples: at least one; those of a batch have one size, see `BatchOrder`.
        cache: holds every key of `examples`.
        seed: of order, noise and noise levels.
        global_batch: samples an optimizer step.
        flow: distribution of the noise levels.
        references: where each sample gets an example image from, if that chooses the experts.
        semantic_channels: of the base, see `Batch`.
        shuffle: in two levels; None: all samples at once.
    """

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        cache: Cache,
        *,
        seed: int,
        global_batch: int,
        flow: FlowConfig,
        references: References | None = None,
        semantic_channels: int = 0,
        shuffle: BlockShuffle | None = None,
    ) -> None:
        self.semantic_channels = semantic_channels
        self.examples = (
            examples if isinstance(examples, TrainingExamples) else TrainingExamples(examples)
        )
        self.cache, self.references = cache, references
        self.seed, self.global_batch, self.flow = seed, global_batch, flow
        names = [f"{height}x{width}" for height, width in self.examples.sizes]
        self.order = BatchOrder(self.examples.buckets, names, global_batch, seed, shuffle)

    def ids(self, step: int) -> list[str]:
        """Sample ids of the global batch of a step (counted from 0)."""
        return [self.examples[number].id for number in self.order.batch(step)]

    def batch(self, step: int, members: Sequence[int]) -> Batch:
        """A part of a step's global batch, on the CPU.

        Args:
            step: counted from 0.
            members: places in the global batch, each below `global_batch`.

        Raises:
            UserError: a cache file was damaged during the run.
        """
        numbers = self.order.batch(step)
        examples = [self.examples[numbers[member]] for member in members]
        images = [self._latents(example) for example in examples]
        texts = [self.cache.load("texts", example.text) for example in examples]
        draws = [self._draw(step, member, images[0][0]) for member in members]
        prompt_embeds = torch.stack([text["prompt_embeds"] for text in texts])
        plan, inside = self._supervision(examples, prompt_embeds.shape[1])
        return Batch(
            ids=tuple(example.id for example in examples),
            target=torch.stack([target for _, target in images]),
            context=torch.stack([context for context, _ in images]),
            noise=torch.stack([noise for _, noise in draws]),
            sigma=torch.stack([sigma for sigma, _ in draws]),
            prompt_embeds=prompt_embeds,
            pooled=torch.stack([text["pooled"] for text in texts]),
            expert_ids=torch.tensor([example.expert for example in examples]),
            plan=plan,
            inside=inside,
            style_emb=self._style_embeddings(step, members, examples),
            semantic_channels=self.semantic_channels,
            perceptual=torch.tensor([*map(self._is_perceptual, members)]),
        )

    def _is_perceptual(self, member: int) -> bool:
        """Whether a place of the global batch gets the perceptual loss; such places are spread."""
        share = self.flow.perceptual.share
        return math.ceil((member + 1) * share) > math.ceil(member * share)

    def _style_embeddings(
        self, step: int, members: Sequence[int], examples: Sequence[TrainingExample]
    ) -> Tensor | None:
        if self.references is None:
            return None
        return torch.stack(
            [
                self.references.draw(
                    example.expert,
                    example.content,
                    seeded("reference", self.seed, step, member),
                    example.id,
                )
                for member, example in zip(members, examples, strict=True)
            ]
        )

    def _latents(self, example: TrainingExample) -> tuple[Tensor, Tensor]:
        """(context, target), each [C,h,w] fp32."""
        context, target = (
            self.cache.load("images", key)["latents"].float()
            for key in (example.context, example.target)
        )
        return context, target

    def _draw(self, step: int, member: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(noise level [], noise [C,h,w]) of one sample."""
        generator = seeded("noise", self.seed, step, member)
        flow = self.flow
        sigma = draw_sigmas(1, flow.timesteps, flow.mean, flow.std, generator)[0]
        return sigma, torch.randn(like.shape, generator=generator)

    def _supervision(
        self, examples: Sequence[TrainingExample], text_len: int
    ) -> tuple[AttentionPlan, Tensor]:
        """The plan, and the union of the masks on the latent grid [B,1,h,w]."""
        masks = [[self.cache.load("masks", key) for key in example.masks] for example in examples]
        on_tokens = [torch.stack([mask["tokens"] for mask in group]) for group in masks]
        inside = [torch.stack([mask["latents"] for mask in group]).amax(0) for group in masks]
        objects = [torch.ones(len(group), dtype=torch.bool) for group in masks]
        padded = pad_sequence(on_tokens, batch_first=True)  # [B,S,h,w], zero where there is none
        # An object that is the whole image teaches no place.
        teaches = padded.sum((-2, -1)).gt(0) & padded.mean((-2, -1)).lt(WHOLE)
        plan = AttentionPlan(
            token_index=pad_token_index([example.token_index for example in examples]),
            masks=padded,
            valid=pad_sequence(objects, batch_first=True) & teaches,
            text_len=text_len,
            image_len=padded.shape[-2] * padded.shape[-1],
        )
        return plan, torch.stack(inside)[:, None]


def pad_token_index(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Token positions of a batch as one tensor.

    Args:
        rows: sample -> region -> positions.

    Returns:
        Long [B,S,K], -1 where a sample has fewer regions or a phrase fewer tokens.
    """
    regions = max(len(row) for row in rows)
    tokens = max(len(positions) for row in rows for positions in row)
    index = torch.full((len(rows), regions, tokens), -1, dtype=torch.long)
    for i, row in enumerate(rows):
        for j, positions in enumerate(row):
            index[i, j, : len(positions)] = torch.tensor(positions)
    return index


def stream(
    data: TrainingData, schedule: Iterable[tuple[int, Sequence[int]]], workers: int
) -> Generator[Batch, None, None]:
    """Batches in the order of `schedule`, read ahead by `workers` threads.

    Args:
        data: where they come from.
        schedule: (step, members) of each batch.
        workers: 0 reads each batch when it is asked for.
    """
    if workers == 0:
        for step, members in schedule:
            yield data.batch(step, members)
        return
    pool, waiting = ThreadPoolExecutor(workers), deque[Future[Batch]]()
    try:
        for step, members in schedule:
            waiting.append(pool.submit(data.batch, step, members))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
