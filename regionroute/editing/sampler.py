"""Sampling: plainly, as the paper does, or routed, where the clauses' maps decide.

Shape legend: B pictures, S (object, style) clauses of each, C latent channels, H W latent rows and
columns, h w image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.adapters import routed
from regionroute.attention import AttentionPlan, region_map
from regionroute.config.run import RoutingConfig
from regionroute.config.sites import AttentionSite
from regionroute.data.prompts import restyle_prompt
from regionroute.diffusion.flow import StepCallback, denoise, guided, predict_velocity, sample
from regionroute.editing.request import EditPlan, EditRequest
from regionroute.editing.styles import Look, Styles
from regionroute.errors import UserError
from regionroute.models.loading import Backbone
from regionroute.routing.gates import (
    boundary_map,
    keep_velocity,
    region_level,
    route_velocity,
    share,
    token_gates,
    widened,
)
from regionroute.routing.instances import Instance, choose_instances
from regionroute.routing.region_maps import MapReader


@dataclass(frozen=True, eq=False)
class Task:
    """Pictures to edit.

    Attributes:
        clauses: S plans for each of B pictures; one each when sampled plainly.
        context: latents of the pictures, [B,C,H,W].
        noise: [B,C,H,W].
        steps: model calls.
        guidance: see `flow.predict_velocity`.
        callback: see `flow.denoise`.
        strength: factor on the gates, in [0,1].
        lock: gates are wanted for a composite over the picture.
        want_map: maps are wanted.
        regions: gates [B,S,h,w] in place of the model's own maps, or None.
        instance: which of several objects of a word.
        mirrored: latents of the mirrored pictures, [B,C,H,W], if maps are read from them too.
    """

    clauses: Sequence[Sequence[EditPlan]]
    context: Tensor
    noise: Tensor
    steps: int
    guidance: float
    callback: StepCallback | None = None
    strength: float = 1.0
    lock: bool = False
    want_map: bool = False
    regions: Tensor | None = None
    instance: Instance = "all"
    mirrored: Tensor | None = None

    @property
    def rows(self) -> list[EditPlan]:
        """The clauses of all pictures, B·S."""
        return [plan for plans in self.clauses for plan in plans]

    @property
    def pairs(self) -> int:
        """S."""
        return len(self.clauses[0])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.context.shape[2] // 2, self.context.shape[3] // 2


@dataclass(frozen=True, eq=False)
class Sampled:
    """What came out.

    Attributes:
        latents: [B,C,H,W].
        gates: [B,S,h,w] in [0,1], if they were needed.
        shown: the map to show, [B,h,w] in [0,1] with its boundary at .5, if there is one.
        level: attention on each clause's region, in multiples of an even spread, [B,S]; if routed.
        instances: how many separate parts each clause's gates have, [B,S]; if routed.
    """

    latents: Tensor
    gates: Tensor | None = None
    shown: Tensor | None = None
    level: Tensor | None = None
    instances: Tensor | None = None


@dataclass(frozen=True)
class Sampler:
    """A base with its experts and its way of reading maps.

    Attributes:
        backbone: the base.
        reader: of the blocks, heads, tokens and words that the maps are made of.
        routing: gates and branches.
        styles: the experts to route to.
    """

    backbone: Backbone
    reader: MapReader
    routing: RoutingConfig
    styles: Styles

    @torch.no_grad()
    def plain(self, task: Task) -> Sampled:
        """The whole prompt is told to the model, which does the rest; one clause a picture.

        The maps are the mean over the steps that are read.
        """
        backbone, reader, rows = self.backbone, self.reader, task.rows
        embeds, pooled = backbone.encode_prompts([plan.prompt.text for plan in rows])
        plan = reader.plan(rows, task.grid, embeds.shape[1])
        seen: list[Tensor] = []

        @contextmanager
        def observe(step: int) -> Iterator[None]:
            if not reader.reads(step):
                yield
                return
            with reader.recording(plan):
                yield
            seen.append(reader.combined())

        with self._routed([row.look for row in rows]):
            latents = sample(
                backbone.transformer, backbone.scheduler, task.context, embeds, pooled,
                steps=task.steps, guidance=task.guidance, noise=task.noise,
                callback=task.callback,
                observe=observe if task.want_map or task.lock else None,
                negative=backbone.negative(task.guidance),
            )  # fmt: skip
        if not seen:
            return Sampled(latents)
        maps = torch.stack(seen).mean(0)[:, None]  # [B,1,h,w]
        gates = token_gates(maps, self.routing) if task.regions is None else task.regions
        return Sampled(latents, gates, region_map(maps)[:, 0])

    @torch.no_grad()
    def routed(self, task: Task) -> Sampled:
        """One branch a clause, which restyles everything; the clauses' maps mix them.

        Each model call is for B·S pictures.
        """
        level = instances = None
        if task.regions is not None:
            gates = shown = task.regions
        else:
            maps, level = self.clause_maps(task)
            gates, shown = token_gates(maps, self.routing), boundary_map(maps, self.routing)
            keep, instances = choose_instances(gates, task.instance)
            gates, shown = gates * keep, shown * keep
        acting = task.strength * (widened(gates, self.routing) if task.lock else gates)
        return Sampled(self._branches(task, acting), gates, shown.amax(1), level, instances)

    def clause_maps(self, task: Task) -> tuple[Tensor, Tensor]:
        """Where each clause's own words look, by one model call at σ = 1, or two if mirrored.

        Each clause is read from its own prompt: maps of a joint prompt run into each other.

        Returns:
            Attention [B,S,h,w], and how many times the attention of an even spread lies on each
            map's region, [B,S].
        """
        plan = self._first_call(task)
        maps, attention = self.reader.combined(), self.reader.attention()
        if task.mirrored is not None:
            self._first_call(replace(task, context=task.mirrored))
            maps = (maps + self.reader.combined().flip(-1)) / 2
            attention = (attention + self.reader.attention().flip(-1)) / 2
        maps, attention = (x.unflatten(0, (-1, task.pairs)) for x in (maps, attention))
        tokens = plan.text_len + 2 * plan.image_len
        return maps, region_level(attention)[..., 0, 0] * tokens

    @torch.no_grad()
    def site_maps(self, task: Task) -> dict[AttentionSite, Tensor]:
        """As `clause_maps`, but each place by itself: [B·S,h,w] in fp32, on the model's device."""
        self._first_call(task)
        return self.reader.maps()

    def _first_call(self, task: Task) -> AttentionPlan:
        """Records one call at σ = 1; returns what was recorded."""
        rows = task.rows
        embeds, pooled = self.backbone.encode_prompts([row.prompt.text for row in rows])
        plan = self.reader.plan(rows, task.grid, embeds.shape[1])
        context, noise = (x.repeat_interleave(task.pairs, 0) for x in (task.context, task.noise))
        with self._routed([row.look for row in rows]), self.reader.recording(plan):
            predict_velocity(
                self.backbone.transformer, noise.to(embeds), context, embeds, pooled,
                torch.ones(len(rows)), task.guidance,
            )  # fmt: skip
        return plan

    def _branches(self, task: Task, gates: Tensor) -> Tensor:
        """Latents [B,C,H,W]; those of the context, to rounding, where all gates are 0."""
        rows, pairs = task.rows, task.pairs
        embeds, pooled = self.backbone.encode_prompts(
            [
                plan.prompt.text
                if self.routing.prompt == "object"
                else restyle_prompt(plan.style_words)
                for plan in rows
            ]
        )
        context = task.context.repeat_interleave(pairs, 0)
        transformer, guidance = self.backbone.transformer, task.guidance
        negative = self.backbone.negative(guidance)

        def velocity(step: int, latents: Tensor, sigma: Tensor) -> Tensor:
            noisy = latents.repeat_interleave(pairs, 0).to(embeds)
            times = sigma.repeat_interleave(pairs)
            speeds = predict_velocity(transformer, noisy, context, embeds, pooled, times, guidance)
            speeds = guided(speeds, negative, transformer, noisy, context, times, guidance)
            keep = keep_velocity(latents, task.context, sigma)
            return route_velocity(speeds.unflatten(0, (-1, pairs)), gates, keep)

        # In fp32: the way back to the context divides by σ.
        start = task.noise.to(embeds.device, torch.float32)
        with self._routed([self._branch(plan.look) for plan in rows]):
            return denoise(
                velocity, self.backbone.scheduler, start, task.steps, task.callback,
                shift=self.backbone.family.time_shift,
            )  # fmt: skip

    def _branch(self, look: Look) -> Look:
        """What restyles: the base where it knows the style by its word, else the experts.

        A blend is made of experts, and only experts know what an example picture shows.
        """
        by_word = self.routing.branch == "base" and not look.blended and look.embedding is None
        return look.bare() if by_word else look

    def _routed(self, looks: Sequence[Look]) -> AbstractContextManager[None]:
        route = self.styles.route(looks)
        return nullcontext() if route is None else routed(self.backbone.transformer, route)


def stacked(images: Sequence[Tensor], requests: Sequence[EditRequest]) -> Tensor:
    """The pictures as one [B,3,H,W].

    Raises:
        ValueError: not as many requests as pictures, or pictures of several sizes.
    """
    if len(images) != len(requests) or not images:
        raise ValueError(f"{len(images)} pictures and {len(requests)} requests")
    if len({image.shape for image in images}) != 1:
        raise ValueError("the pictures of a batch must have one size")
    return torch.stack(list(images))


def given_regions(requests: Sequence[EditRequest], sources: Tensor) -> Tensor | None:
    """The requests' own regions [B,S,H,W], None if none has any.

    Raises:
        UserError: a region of another size than the pictures.
        ValueError: some requests have regions, others not.
    """
    if not any(request.regions for request in requests):
        return None
    size = tuple(sources.shape[-2:])
    for region in (region for request in requests for region in request.regions):
        if tuple(region.shape) != size:
            raise UserError(
                f"a region map is {region.shape[-1]}x{region.shape[-2]}, the picture "
                f"{size[1]}x{size[0]}: give one of the picture's size"
            )
    if len({len(request.regions) for request in requests}) != 1:
        raise ValueError("all pictures of a batch need regions, or none")
    return share(torch.stack([torch.stack(request.regions) for request in requests]))


def gates_of_regions(regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Given regions [B,S,H,W] in [0,1] as gates on the token grid, [B,S,h,w]."""
    return share(F.interpolate(regions, grid, mode="area"))
