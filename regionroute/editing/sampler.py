"""Sampling: plain, as in the paper, or routed by the region map of each (object, style) pair.

Shape legend: B images, S (object, style) pairs per image, C latent channels, H W latent rows and
columns, h w image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regionroute.adapters import ActiveRoute, routed
from regionroute.attention import AttentionPlan, region_map
from regionroute.attention.row_cache import RowCache
from regionroute.config.run import RoutingConfig
from regionroute.config.sites import AttentionSite
from regionroute.data.prompts import restyle_prompt
from regionroute.diffusion.flow import denoise, guide, predict_velocity, sample
from regionroute.editing.sampling_job import SamplingJob, SamplingResult
from regionroute.editing.sparse import SparseCalls
from regionroute.editing.styles import ResolvedStyle, Styles
from regionroute.models.backbone import Backbone
from regionroute.routing.gates import (
    attention_concentration,
    boundary_map,
    keep_velocity,
    route_velocity,
    token_gates,
    widen_gates,
)
from regionroute.routing.instances import choose_instances
from regionroute.routing.region_maps import MapReader


class Interrupted(Exception):
    """Raised by a step callback to end sampling early; carries the latents [B,C,H,W] so far."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("sampling was interrupted")
        self.latents = latents


@dataclass(frozen=True, eq=False)
class FirstCall:
    """The model call at σ = 1 that reads the maps.

    Attributes:
        plan: what was recorded.
        velocity: predicted for every pair, [B·S,C,H,W].
        cache: keys and values of its tokens, where they were stored.
    """

    plan: AttentionPlan
    velocity: Tensor
    cache: RowCache | None = None


@dataclass(frozen=True)
class Sampler:
    """Samples with a base, its experts and a choice of attention sites.

    Attributes:
        backbone: the base.
        reader: reads region maps at the chosen sites.
        routing: form of the gates and the branches.
        styles: the experts.
    """

    backbone: Backbone
    reader: MapReader
    routing: RoutingConfig
    styles: Styles

    @torch.no_grad()
    def run(self, job: SamplingJob) -> SamplingResult:
        """Sample a job: predict the region maps, turn them into gates, denoise."""
        if job.mode == "routed":
            return self._routed(job)
        in_region = self._in_region(job) if job.sparse else None
        return in_region or self._plain(job)

    @torch.no_grad()
    def site_maps(self, job: SamplingJob) -> dict[AttentionSite, Tensor]:
        """The attention of each site by itself at σ = 1: [B·S,h,w] fp32, on the model's device."""
        self._first_call(job)
        return self.reader.maps()

    def _plain(self, job: SamplingJob) -> SamplingResult:
        """Condition on the whole prompt; maps are the mean over the recorded steps."""
        backbone, reader, rows = self.backbone, self.reader, job.rows
        embeds, pooled = backbone.encode_prompts([plan.prompt.text for plan in rows])
        plan = reader.plan(rows, job.grid, embeds.shape[1])
        recorded: list[Tensor] = []

        @contextmanager
        def observe(step: int) -> Iterator[None]:
            if not reader.reads(step):
                yield
                return
            with reader.recording(plan):
                yield
            recorded.append(reader.combined())

        interrupted, negative = False, backbone.negative(job.guidance)
        backbone.on_device(backbone.transformer)
        with self._route([row.style for row in rows]):
            try:
                latents = sample(
                    backbone.transformer, backbone.scheduler, job.context, embeds, pooled,
                    steps=job.steps, guidance=job.guidance, noise=job.noise,
                    callback=job.callback,
                    observe=observe if job.want_map or job.lock_background else None,
                    negative=negative,
                )  # fmt: skip
            except Interrupted as stop:
                latents, interrupted = stop.latents, True
        if not recorded:
            return SamplingResult(latents, interrupted=interrupted)
        maps = torch.stack(recorded).mean(0)[:, None]  # [B,1,h,w]
        gates = token_gates(maps, self.routing) if job.gates is None else job.gates
        shown = region_map(maps)[:, 0]
        return SamplingResult(latents, gates, shown, interrupted=interrupted)

    def _routed(self, job: SamplingJob) -> SamplingResult:
        """Sample one branch per pair, each restyling the whole image, and mix them by the gates.

        Each model call is for B·S images.
        """
        concentration = instances = presence = absent = first = None
        if job.gates is not None:
            gates = shown = job.gates
        else:
            first = self._first_call(job)
            maps, concentration = self._pair_maps(job, first)
            presence = job.presence
            absent = torch.zeros(maps.shape[:2], dtype=torch.bool, device=maps.device)
            if presence is not None:
                absent = presence < self.routing.presence
            gates = token_gates(maps * ~absent[..., None, None], self.routing)
            keep, instances = choose_instances(gates, job.instance)
            # An image that stays as it is shows where its objects were looked for.
            mapped = ~absent | absent.all(1, keepdim=True)
            gates = gates * keep
            shown = boundary_map(maps, self.routing) * keep * mapped[..., None, None]
        acting = widen_gates(gates, self.routing) if job.lock_background else gates
        calls = self._calls(job, acting)
        if calls is None and first is not None:
            first = replace(first, cache=None)  # frees the stored rows
        shared = first if self._first_step_is_shared(job) else None
        latents, interrupted = self._branches(job, job.strength * acting, shared, calls)
        return SamplingResult(
            latents, gates, shown.amax(1), concentration, instances, presence, absent, interrupted,
            calls.partial if calls else None,
        )  # fmt: skip

    def _in_region(self, job: SamplingJob) -> SamplingResult | None:
        """A plain edit of given regions [B,1,h,w]: a branch each, whose gate is open there.

        None where they are the whole image.
        """
        assert job.gates is not None
        whole_prompt = self.routing.model_copy(update={"prompt": "object", "branch": "expert"})
        own, gates = replace(self, routing=whole_prompt), (job.gates > 0).float()
        calls = own._calls(job, gates)
        if calls is None:
            return None
        first = own._first_call(job) if job.want_map else None
        shown = None if first is None else region_map(self.reader.combined()[:, None])[:, 0]
        latents, interrupted = own._branches(job, gates, first, calls)
        return SamplingResult(
            latents, job.gates, shown, interrupted=interrupted, sparse=calls.partial
        )

    def _calls(self, job: SamplingJob, gates: Tensor) -> SparseCalls | None:
        """The model calls of a sparse job; None for a dense one, and where all regions are whole.

        Args:
            job: what to sample.
            gates: where each branch acts, [B,S,h,w].
        """
        if not job.sparse:
            return None
        contexts = [self.styles.route([self._branch_style(row.style)]) for row in job.rows]
        routes = [None if context is None else ActiveRoute(context) for context in contexts]

        def route(branch: int) -> AbstractContextManager[None]:
            own = routes[branch]
            # That of a single branch is in force.
            if own is None or len(routes) == 1:
                return nullcontext()
            return routed(self.backbone.transformer, own)

        calls = SparseCalls(
            self.backbone.transformer, gates.flatten(0, 1), job.steps, job.sparse_quality, route
        )
        return None if all(branch.region.whole for branch in calls.branches) else calls

    def _pair_maps(self, job: SamplingJob, first: FirstCall) -> tuple[Tensor, Tensor]:
        """The attention of each pair's words, from the first call, or from two if mirrored.

        Each pair is read from its own prompt: the maps of a joint prompt run into each other.

        Returns:
            Attention [B,S,h,w], and its concentration on each map's region in multiples of the
            average over all tokens, [B,S].
        """
        maps, attention = self.reader.combined(), self.reader.attention()
        if job.mirrored is not None:
            self._first_call(replace(job, context=job.mirrored, sparse=False))
            maps = (maps + self.reader.combined().flip(-1)) / 2
            attention = (attention + self.reader.attention().flip(-1)) / 2
        maps, attention = (x.unflatten(0, (-1, job.pairs)) for x in (maps, attention))
        tokens = first.plan.text_len + 2 * first.plan.image_len
        return maps, attention_concentration(attention)[..., 0, 0] * tokens

    def _first_step_is_shared(self, job: SamplingJob) -> bool:
        """Whether the call that reads the maps is the branches' first step as well."""
        return self.routing.prompt == "object" and all(
            self._branch_style(row.style) is row.style for row in job.rows
        )

    def _first_call(self, job: SamplingJob) -> FirstCall:
        """Record one model call at σ = 1."""
        rows = job.rows
        embeds, pooled = self.backbone.encode_prompts([row.prompt.text for row in rows])
        plan = self.reader.plan(rows, job.grid, embeds.shape[1])
        self.backbone.on_device(self.backbone.transformer)
        context, noise = (x.repeat_interleave(job.pairs, 0) for x in (job.context, job.noise))
        given = (
            self.backbone.transformer, noise.to(embeds), context, embeds, pooled,
            torch.ones(len(rows)), job.guidance,
        )  # fmt: skip
        with self._route([row.style for row in rows]):
            if not (job.sparse and self._first_step_is_shared(job)):
                with self.reader.recording(plan):
                    return FirstCall(plan, predict_velocity(*given))
            cache = RowCache()
            with self.reader.cores(plan) as cores, cache.full(self.backbone.transformer, cores):
                return FirstCall(plan, predict_velocity(*given), cache)

    def _branches(
        self,
        job: SamplingJob,
        gates: Tensor,
        first: FirstCall | None,
        calls: SparseCalls | None,
    ) -> tuple[Tensor, bool]:
        """Denoise with a branch per pair.

        Args:
            job: what to sample.
            gates: [B,S,h,w].
            first: the first step's call where it is made already, else None.
            calls: those of a sparse job, else None.

        Returns:
            Latents [B,C,H,W], up to rounding those of the context where all gates are 0, and
            whether sampling was interrupted.
        """
        if calls is not None:
            gates = gates * calls.open.unflatten(0, (-1, job.pairs))
        if not gates.any():
            return job.context, False
        rows, pairs = job.rows, job.pairs
        own = self.routing.prompt == "object"
        embeds, pooled = self.backbone.encode_prompts(
            [plan.prompt.text if own else restyle_prompt(plan.style_words) for plan in rows]
        )
        context = job.context.repeat_interleave(pairs, 0)
        transformer, guidance = self.backbone.transformer, job.guidance
        negative = self.backbone.negative(guidance)
        self.backbone.on_device(transformer)
        if calls is not None and first is not None:
            calls.reuse(first.cache)

        def predict(step: int, *given: Any, negative: bool = False) -> Tensor:
            if step == 0 and first is not None and not negative:
                return first.velocity
            if calls is not None:
                return calls.predict(step, *given, negative=negative)
            return predict_velocity(transformer, *given)

        def velocity(step: int, latents: Tensor, sigma: Tensor) -> Tensor:
            noisy = latents.repeat_interleave(pairs, 0).to(embeds)
            times = sigma.repeat_interleave(pairs)
            speeds = predict(step, noisy, context, embeds, pooled, times, guidance)
            if negative is not None:
                empty = (x.expand(len(noisy), *x.shape[1:]) for x in negative)
                without = predict(step, noisy, context, *empty, times, guidance, negative=True)
                speeds = guide(speeds, without, guidance)
            keep = keep_velocity(latents, job.context, sigma)
            return route_velocity(speeds.unflatten(0, (-1, pairs)), gates, keep)

        # In fp32: `keep_velocity` divides by σ.
        start = job.noise.to(embeds.device, torch.float32)
        with self._route([self._branch_style(plan.style) for plan in rows]):
            try:
                latents = denoise(
                    velocity, self.backbone.scheduler, start, job.steps, job.callback,
                    shift=self.backbone.family.time_shift,
                )  # fmt: skip
            except Interrupted as stop:
                return stop.latents, True
        return latents, False

    def _branch_style(self, style: ResolvedStyle) -> ResolvedStyle:
        """The style of a branch: without experts where the base alone paints named styles.

        Blends are defined by experts, and only experts know the style of a reference image.
        """
        base_paints = (
            self.routing.branch == "base" and not style.blended and style.embedding is None
        )
        return style.without_experts() if base_paints else style

    def _route(self, styles: Sequence[ResolvedStyle]) -> AbstractContextManager[None]:
        route = self.styles.route(styles)
        return nullcontext() if route is None else routed(self.backbone.transformer, route)
