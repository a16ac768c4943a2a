"""Editing: a picture, an object word and a style word in; the edited picture and its map out.

Shape legend: B batch, H W pixels of the picture, h w image tokens (the map's grid), C latent
channels, T text tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from regionroute.adapters import ExpertRegistry, load_experts, read_registry
from regionroute.config.run import Quantize, RoutingConfig
from regionroute.config.sites import AttentionSite, MapChoice
from regionroute.data.images import resize
from regionroute.data.prompts import Prompt
from regionroute.diffusion.flow import StepCallback
from regionroute.editing.expert_settings import stored_choice, stored_routing, trained_sizes
from regionroute.editing.metadata import common, describe
from regionroute.editing.refine_crop import Window, look_closer
from regionroute.editing.request import (
    EditOptions,
    EditPlan,
    EditRequest,
    EditResult,
    Mode,
    plan_clauses,
)
from regionroute.editing.sampler import (
    Sampled,
    Sampler,
    Task,
    gates_of_regions,
    given_regions,
    stacked,
)
from regionroute.editing.styles import Styles
from regionroute.errors import UserError
from regionroute.models.bundled import bundled_experts, usual_base
from regionroute.models.loading import Backbone, load_backbone
from regionroute.routing.gates import composite, sharpened
from regionroute.routing.pixel_gates import pixel_gates
from regionroute.routing.region_maps import MapReader


class Editor:
    """Edits pictures with a base and, unless zero-shot, its style experts.

    Args:
        backbone: the base; experts are injected into its transformer.
        experts_dir: folder with ``experts.json``; None edits with the base alone, for any style.

    Raises:
        UserError: the experts are missing, damaged, or for another base.
    """

    def __init__(self, backbone: Backbone, experts_dir: str | PathLike[str] | None = None) -> None:
        self.backbone = backbone
        self.experts_dir = experts_dir
        self.registry: ExpertRegistry | None = None
        self.styles = Styles()
        self.routing, self._routing_was_stored = RoutingConfig(branch="base"), False
        self.read_maps(MapChoice())
        if experts_dir is not None:
            self.registry = load_experts(experts_dir, backbone)
            self.backbone.transformer.to(backbone.device)
            self.styles = Styles(self.registry, experts_dir, backbone.device)
            self.routing = stored_routing(self.registry.extra, experts_dir)
            self._routing_was_stored = "routing" in self.registry.extra
            backbone.settings = trained_sizes(backbone.settings, self.registry.extra, experts_dir)
            self.read_maps(
                stored_choice(self.registry.extra, experts_dir), f"{experts_dir}/experts.json: map"
            )

    def check(self, request: EditRequest, options: EditOptions | None = None) -> None:
        """Refuses a request that cannot be carried out, without doing it.

        Raises:
            UserError: unknown style, empty or missing phrase, phrase cut off, bad seed.
        """
        self._clauses(request, self.resolved(options or EditOptions()))

    def edit(
        self,
        image: Tensor,
        object: str,
        style: str = "",
        *,
        style_image: Tensor | Sequence[Tensor] = (),
        prompt: str | Prompt | None = None,
        seed: int = 0,
        also: Sequence[tuple[str, str]] = (),
        regions: Sequence[Tensor] = (),
        want_map: bool = False,
        **options: Any,
    ) -> EditResult:
        """Edits one picture [3,H,W] in [0,1]; see `EditRequest`, `EditOptions`, `edit_batch`.

        Example:
            >>> editor.edit(photo, "dog", "pixel-art", also=[("cup", "line-art")])  # doctest: +SKIP
        """
        shown = (style_image,) if isinstance(style_image, Tensor) else tuple(style_image)
        request = EditRequest(object, style, prompt, seed, tuple(also), tuple(regions), shown)
        return self.edit_batch([image], [request], EditOptions(**options), want_map=want_map)[0]

    @torch.no_grad()
    def edit_batch(
        self,
        images: Sequence[Tensor],
        requests: Sequence[EditRequest],
        options: EditOptions | None = None,
        *,
        want_map: bool = False,
        callback: StepCallback | None = None,
    ) -> list[EditResult]:
        """Edits pictures of one size together; a picture does not depend on its neighbours.

        Args:
            images: B tensors [3,H,W] in [0,1], all of one size.
            requests: B requests; objects, styles and seeds may differ, the number of objects not.
            options: None: the measured best.
            want_map: give the region maps; costs a little time and changes no picture.
            callback: called after each step, see `flow.denoise`; for progress.

        Returns:
            B results.

        Raises:
            UserError: a request or an option that cannot be carried out.
            ValueError: not as many requests as pictures, or pictures of several sizes or with
                different numbers of objects.
        """
        sources = stacked(images, requests)
        options = self.resolved(options or EditOptions())
        regions = given_regions(requests, sources)
        clauses = [
            [self._embedded(plan) for plan in self._clauses(request, options)]
            for request in requests
        ]
        if len({len(plans) for plans in clauses}) != 1:
            raise ValueError("the pictures of a batch must have equally many objects")
        task = self._task(sources, clauses, options, regions, want_map, callback)
        sampler = self._sampler
        sampled = sampler.routed(task) if options.mode == "routed" else sampler.plain(task)
        size = sources.shape[-2], sources.shape[-1]
        edited = resize(self._picture(sampled, options), size).cpu()
        if options.lock_background:
            assert sampled.gates is not None
            if regions is None:
                regions = pixel_gates(sampled.gates.cpu(), sources, self.routing)
            edited = composite(edited, sources, regions)
        facts = common(self.backbone, self.experts_dir, options, size)
        windows: list[Window | None] = [None] * len(requests)
        if options.closer and math.prod(size) > math.prod(facts["model_size"]):
            assert regions is not None
            edited, windows = self._closer(edited, sources, requests, regions, options)
        if sampled.shown is not None and (task.regions is None or options.mode == "plain"):
            facts["map"] = self.map_choice.settings()
        results = []
        for row, (image, plans) in enumerate(zip(edited, clauses, strict=True)):
            text = " | ".join(plan.prompt.text for plan in plans)
            own = describe(plans, sampled, row, self.routing.confidence, windows[row])
            shown = sampled.shown[row].cpu() if want_map and sampled.shown is not None else None
            results.append(EditResult(image, shown, text, own | facts))
        return results

    def _picture(self, sampled: Sampled, options: EditOptions) -> Tensor:
        """What was sampled, [B,3,H,W] in [0,1] at the model's size."""
        picture = self.backbone.decode_latents(sampled.latents)
        if options.mode == "plain" or sampled.gates is None:
            return picture
        return sharpened(picture, sampled.gates, self.routing.sharpen)

    def _closer(
        self,
        edited: Tensor,
        sources: Tensor,
        requests: Sequence[EditRequest],
        regions: Tensor,
        options: EditOptions,
    ) -> tuple[Tensor, list[Window | None]]:
        """The edits [B,3,H,W] with a closer look at their regions [B,S,H,W], and its windows."""
        again = dataclasses.replace(options, closer=False, instance="all")

        def edit(picture: Tensor, asked: EditRequest) -> Tensor:
            return self.edit_batch([picture], [asked], again)[0].image

        looks = [
            look_closer(source, request, region, edit) or (far, None)
            for far, source, request, region in zip(edited, sources, requests, regions, strict=True)
        ]
        return torch.stack([image for image, _ in looks]), [window for _, window in looks]

    @property
    def _sampler(self) -> Sampler:
        return Sampler(self.backbone, self._reader, self.routing, self.styles)

    def _embedded(self, plan: EditPlan) -> EditPlan:
        return dataclasses.replace(plan, look=self.styles.embedded(plan.look))

    def _task(
        self,
        sources: Tensor,
        clauses: list[list[EditPlan]],
        options: EditOptions,
        regions: Tensor | None = None,
        want_map: bool = False,
        callback: StepCallback | None = None,
    ) -> Task:
        size = self.backbone.fit_size(sources.shape[-2], sources.shape[-1])
        context = self.backbone.encode_images(resize(sources, size))
        noise = [self.backbone.draw_noise((1, *context.shape[1:]), p[0].seed) for p in clauses]
        assert options.steps is not None
        assert options.guidance is not None
        task = Task(
            clauses, context, torch.cat(noise), options.steps, options.guidance, callback,
            options.strength, bool(options.lock_background), want_map, instance=options.instance,
        )  # fmt: skip
        if regions is None and self.routing.mirror and options.mode == "routed":
            mirrored = self.backbone.encode_images(resize(sources.flip(-1), size))
            return dataclasses.replace(task, mirrored=mirrored)
        if regions is None:
            return task
        return dataclasses.replace(task, regions=gates_of_regions(regions, task.grid).to(context))

    def resolved(self, options: EditOptions) -> EditOptions:
        """The options with nothing left open, see `EditOptions.resolved`."""
        own = self.backbone.settings
        mode: Mode = "routed" if self._routing_was_stored else "plain"
        return options.resolved(
            steps=own.steps, guidance=own.guidance, mode=mode, closer=own.closer
        )

    def read_maps(self, choice: MapChoice, source: str = "map") -> None:
        """Reads region maps, and with them the gates of routed edits, from other places.

        Args:
            choice: the places, and how their maps become one.
            source: names the choice in errors.

        Raises:
            UserError: a block or a head that the base does not have.
        """
        self._reader = MapReader(self.backbone.transformer, choice, source)

    @property
    def map_choice(self) -> MapChoice:
        """Where maps are read: as calibrated, else as the experts were supervised, else all."""
        return self._reader.choice

    def site_maps(
        self, images: Sequence[Tensor], requests: Sequence[EditRequest], *, bare: bool = False
    ) -> dict[AttentionSite, Tensor]:
        """The attention of each place by itself where an edit starts, at σ = 1; nothing is edited.

        Args:
            images: B tensors [3,H,W] in [0,1], all of one size.
            requests: B requests with one object each.
            bare: leave the experts out.

        Returns:
            For each place of `map_choice` the maps [B,h,w] in fp32, on the model's device.

        Raises:
            UserError: a request that cannot be carried out.
        """
        options = self.resolved(EditOptions(mode="plain"))
        clauses = [self._clauses(request, options) for request in requests]
        if bare:
            clauses = [
                [dataclasses.replace(plan, look=plan.look.bare()) for plan in plans]
                for plans in clauses
            ]
        task = self._task(torch.stack(list(images)), clauses, options)
        return self._sampler.site_maps(task)

    def _clauses(self, request: EditRequest, options: EditOptions) -> list[EditPlan]:
        plans = plan_clauses(request, self.styles, self.backbone.token_indices)
        if request.regions and options.instance != "all":
            raise UserError("instance: leave it out where region maps are given, or those")
        if options.mode == "plain" and len(plans) > 1:
            raise UserError(
                "mode plain edits one object at a time: use mode routed, or one edit after another"
            )
        return plans


def load_editor(
    base: str | None = None,
    experts: str | PathLike[str] | None = "auto",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: Quantize | None = None,
) -> Editor:
    """Loads a base with experts.

    Args:
        base: see :func:`regionroute.models.loading.load_backbone`; None: the one that the
            experts were trained on, without a folder of experts the embedded one for photos.
        experts: their folder; ``auto`` takes the folder that comes with the base,
            ``by_example`` the one for example pictures; None edits zero-shot, with the base alone.
        dtype: of the networks.
        device: where they run.
        quantize: see :func:`regionroute.models.loading.load_backbone`.

    Raises:
        UserError: base or experts cannot be loaded.
    """
    base = base or usual_base(experts)
    if experts in ("auto", "by_example"):
        experts = bundled_experts(base, by_example=experts == "by_example")
    if experts is not None:
        read_registry(experts)  # a wrong folder shows before a large base is loaded
    return Editor(load_backbone(base, dtype, device, quantize), experts)


def edit(
    image: Tensor,
    object: str,
    style: str = "",
    *,
    base: str | None = None,
    experts: str | PathLike[str] | None = "auto",
    device: str | torch.device = "cpu",
    **options: Any,
) -> EditResult:
    """Loads, edits one picture [3,H,W] in [0,1], forgets; keep an :class:`Editor` for several.

    Example:
        >>> result = edit(read_image("photo.png"), "square", "pixel-art")  # doctest: +SKIP

    Args:
        image: [3,H,W] in [0,1].
        object: word for the object.
        style: name of the style; leave it out where ``style_image`` shows it.
        base: see :func:`load_editor`.
        device: where to run.
        experts: see :func:`load_editor`; ``auto`` heeds whether there is a ``style_image``.
        options: further arguments of :meth:`Editor.edit`.
    """
    if experts == "auto" and "style_image" in options:
        experts = "by_example"
    return load_editor(base, experts, device=device).edit(image, object, style, **options)
