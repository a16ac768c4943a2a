"""The editing engine: a batch of images and requests in, edited images and region maps out.

`regionroute.pipeline` is the public front; batches of files and calibration use the engine itself.

Shape legend: B images, S (object, style) pairs per image, H W pixels, h w image tokens (the grid
of region maps), C latent channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor

from regionroute.adapters import ExpertRegistry, load_experts
from regionroute.config.choices import Backend, Mode
from regionroute.config.run import RoutingConfig
from regionroute.config.sites import AttentionSite, MapChoice
from regionroute.data.images import resize
from regionroute.data.prompts import object_words
from regionroute.diffusion.flow import StepCallback
from regionroute.editing.expert_settings import stored_choice, stored_routing, trained_sizes
from regionroute.editing.metadata import batch_metadata, image_metadata
from regionroute.editing.refine_crop import Crop, refine_crop
from regionroute.editing.request import (
    EditOptions,
    EditPlan,
    EditRequest,
    EditResult,
    plan_pairs,
)
from regionroute.editing.sampler import Sampler
from regionroute.editing.sampling_job import (
    SamplingJob,
    SamplingResult,
    stack_images,
    stack_regions,
)
from regionroute.editing.sparse import images_at_once
from regionroute.editing.styles import Styles
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone
from regionroute.models.bundled import experts_folder
from regionroute.routing.gates import composite, gates_on_grid, sharpen
from regionroute.routing.pixel_gates import pixel_gates
from regionroute.routing.region_maps import MapReader


class Editor:
    """Edits images with a base and, unless zero-shot, its style experts.

    Args:
        backbone: the base; experts are injected into its transformer.
        experts_dir: folder with ``experts.json``, or a name as of `experts_folder`; None: edit with
            the base alone, in any style.

    Attributes:
        registry: of the loaded experts, or None.
        styles: the available styles.
        routing: form of the gates and branches of routed edits.
        memory_share: share of the machine's or GPU's memory that is this process's.

    Raises:
        UserError: the experts are missing, damaged, or for another base.
    """

    def __init__(self, backbone: Backbone, experts_dir: str | PathLike[str] | None = None) -> None:
        self.backbone = backbone
        self.memory_share = 1.0
        if experts_dir is not None:
            experts_dir = experts_folder(experts_dir)
        self.experts_dir = experts_dir
        self.registry: ExpertRegistry | None = None
        self.styles = Styles()
        self.routing, self._routing_was_stored = RoutingConfig(branch="base"), False
        self.read_maps(MapChoice())
        if experts_dir is not None:
            self.registry = load_experts(experts_dir, backbone)
            backbone.transformer.to(backbone.device)
            extra = self.registry.extra
            self.styles = Styles(self.registry, experts_dir, backbone.device)
            self.routing = stored_routing(extra, experts_dir)
            self._routing_was_stored = "routing" in extra
            backbone.settings = trained_sizes(backbone.settings, extra, experts_dir)
            self.read_maps(stored_choice(extra, experts_dir), f"{experts_dir}/experts.json: map")

    def check(self, request: EditRequest, options: EditOptions | None = None) -> None:
        """Check a request without editing.

        Raises:
            UserError: unknown style, empty, missing or truncated phrase, bad seed or option.
        """
        self._plans(request, self.resolved(options or EditOptions()))

    def edit(
        self,
        image: Tensor,
        request: EditRequest,
        options: EditOptions | None = None,
        *,
        want_map: bool = False,
    ) -> EditResult:
        """Edit one image [3,H,W] in [0,1], see `edit_batch`."""
        return self.edit_batch([image], [request], options, want_map=want_map)[0]

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
        """Edit images of one size together; no image depends on the others.

        Args:
            images: B tensors [3,H,W] in [0,1], all of one size.
            requests: B requests; objects, styles and seeds may differ, the number of pairs may not.
            options: None: the defaults of the base and its experts.
            want_map: return region maps.
            callback: called after each step, see `flow.denoise`; may raise `sampler.Interrupted`.

        Returns:
            B results.

        Raises:
            UserError: a request or an option that cannot be carried out.
            ValueError: not as many requests as images, or images of several sizes or with
                different numbers of pairs.
        """
        options = self.resolved(options or EditOptions())
        sources = stack_images(images, requests)
        regions = stack_regions(requests, sources)
        plans = [
            [self._embedded(plan) for plan in self._plans(request, options)] for request in requests
        ]
        if len({len(pairs) for pairs in plans}) != 1:
            raise ValueError("the images of a batch must have equally many objects")
        at_once, too_little = images_at_once(
            self.backbone, options, _size(sources), len(plans[0]), regions is not None,
            self.memory_share,
        )  # fmt: skip
        if 0 < at_once < len(images):
            parts = [slice(i, i + at_once) for i in range(0, len(images), at_once)]
            return [
                result
                for own in parts
                for result in self.edit_batch(
                    images[own], requests[own], options, want_map=want_map, callback=callback
                )
            ]
        job = self._job(sources, plans, options, regions, want_map, callback)
        job = dataclasses.replace(job, sparse=at_once > 0)
        sampled = self._sampler.run(job)
        edited, crops, acted = self._finish(sampled, sources, requests, regions, options)
        shared = batch_metadata(self.backbone, self.experts_dir, options, _size(sources))
        if too_little is not None:
            shared["dense_because"] = too_little
        if sampled.region_map is not None and (regions is None or options.mode == "plain"):
            shared["map"] = self.map_choice.settings()
        results = []
        for row, (image, pairs) in enumerate(zip(edited, plans, strict=True)):
            own = image_metadata(pairs, sampled, row, self.routing.confidence, crops[row])
            branches = slice(row * len(pairs), (row + 1) * len(pairs))
            shared["sparse"] = any((sampled.sparse or [])[branches])
            region_map = sampled.region_map if want_map else None
            results.append(
                EditResult(
                    image,
                    None if region_map is None else region_map[row].cpu(),
                    " | ".join(plan.prompt.text for plan in pairs),
                    own | shared,
                    acted[row] if want_map and acted is not None else None,
                )
            )
        return results

    def _finish(
        self,
        sampled: SamplingResult,
        sources: Tensor,
        requests: Sequence[EditRequest],
        regions: Tensor | None,
        options: EditOptions,
    ) -> tuple[Tensor, list[Crop | None], Tensor | None]:
        """Decode, composite over the sources and refine.

        Returns:
            Edits [B,3,H,W], the refined crops, and the composite's regions [B,S,H,W], if any.
        """
        size = _size(sources)
        if options.strength == 0:  # decoding would change the photo slightly
            edited = sources.clone()
        else:
            edited = self.backbone.decode_latents(sampled.latents)
        if options.mode == "routed" and options.strength:
            assert sampled.gates is not None
            edited = sharpen(edited, sampled.gates, self.routing.sharpen)
        crops: list[Crop | None] = [None] * len(requests)
        if not options.lock_background:
            edited = resize(edited, size).cpu()
            if sampled.absent is not None:
                nothing = sampled.absent.all(1).cpu()  # decoding would change them slightly
                edited[nothing] = sources[nothing].to(edited)
            return edited, crops, None
        if regions is None:
            assert sampled.gates is not None
            regions = pixel_gates(sampled.gates.cpu(), sources, self.routing)
        # Large images: at most one copy besides the source and the regions.
        edited = composite(resize(edited, size).cpu(), sources, regions, in_place=True)
        larger = math.prod(size) > math.prod(self.backbone.fit_size(*size))
        if options.refine_crop and larger and options.strength and not sampled.interrupted:
            # In the crop the object was found already.
            again = dataclasses.replace(options, refine_crop=False, instance="all", force=True)
            for row, request in enumerate(requests):
                refined = refine_crop(
                    sources[row],
                    request,
                    regions[row],
                    lambda image, request: self.edit(image, request, again).image,
                )
                if refined is not None:
                    crop, (top, left, height, width) = refined
                    edited[row, :, top : top + height, left : left + width] = crop
                    crops[row] = refined[1]
        return edited, crops, regions

    @property
    def _sampler(self) -> Sampler:
        return Sampler(self.backbone, self._reader, self.routing, self.styles)

    def _embedded(self, plan: EditPlan) -> EditPlan:
        return dataclasses.replace(plan, style=self.styles.embed(plan.style))

    def _job(
        self,
        sources: Tensor,
        plans: Sequence[Sequence[EditPlan]],
        options: EditOptions,
        regions: Tensor | None = None,
        want_map: bool = False,
        callback: StepCallback | None = None,
    ) -> SamplingJob:
        size = self.backbone.fit_size(*_size(sources))
        context = self.backbone.encode_images(sources, size)
        noise = [self.backbone.draw_noise((1, *context.shape[1:]), p[0].seed) for p in plans]
        assert options.steps is not None
        assert options.guidance is not None
        assert options.mode is not None
        job = SamplingJob(
            plans, context, torch.cat(noise), options.steps, options.guidance, options.mode,
            callback, options.strength, bool(options.lock_background), want_map,
            sparse_quality=options.sparse_quality, instance=options.instance,
        )  # fmt: skip
        if regions is not None:
            return dataclasses.replace(job, gates=gates_on_grid(regions, job.grid).to(context))
        if options.mode == "routed":
            if self.routing.mirror:
                mirrored = self.backbone.encode_images(sources.flip(-1), size)
                job = dataclasses.replace(job, mirrored=mirrored)
            if not options.force:
                # An own prompt may mark a phrase of no words, such as "-".
                phrases = [[object_words(p.object) or p.object for p in row] for row in plans]
                presence = self.backbone.presence(sources, phrases)
                job = dataclasses.replace(job, presence=presence)
        return job

    def resolved(self, options: EditOptions) -> EditOptions:
        """Options with the defaults of the base and its experts, see `EditOptions.resolved`."""
        own = self.backbone.settings
        mode: Mode = "routed" if self._routing_was_stored else "plain"
        return options.resolved(
            steps=own.steps, guidance=own.guidance, mode=mode, refine_crop=own.refine_crop
        )

    def read_maps(self, choice: MapChoice, source: str = "map") -> None:
        """Choose the attention sites that region maps, and with them gates, are read from.

        Args:
            choice: the sites, and how their maps are combined.
            source: names the choice in errors.

        Raises:
            UserError: a block or a head that the base does not have.
        """
        self._reader = MapReader(self.backbone.transformer, choice, source)

    def attend_by(self, backend: Backend) -> None:
        """Choose the kernel of the attention that maps are read from, see `columns.attend`.

        Raises:
            UserError: maps that need none, and a kernel that is named all the same.
        """
        if backend != "auto" and self.map_choice.norm != "full":
            raise UserError(
                f"--attention-backend {backend}: these maps (norm {self.map_choice.norm}) use no "
                "kernel, leave it out"
            )
        self._reader.recorder.backend = backend

    @property
    def map_choice(self) -> MapChoice:
        """The attention sites: as calibrated, else as supervised in training, else all."""
        return self._reader.choice

    def site_maps(
        self, images: Sequence[Tensor], requests: Sequence[EditRequest], *, bare: bool = False
    ) -> dict[AttentionSite, Tensor]:
        """The attention of each site by itself at the first step, σ = 1; nothing is edited.

        Args:
            images: B tensors [3,H,W] in [0,1], all of one size.
            requests: B requests with one pair each.
            bare: without the experts.

        Returns:
            For each site of `map_choice` the maps [B,h,w] in fp32, on the model's device.

        Raises:
            UserError: a request that cannot be carried out.
        """
        options = self.resolved(EditOptions(mode="plain"))
        plans = [self._plans(request, options) for request in requests]
        if bare:
            plans = [
                [dataclasses.replace(plan, style=plan.style.without_experts()) for plan in pairs]
                for pairs in plans
            ]
        return self._sampler.site_maps(self._job(stack_images(images, requests), plans, options))

    def _plans(self, request: EditRequest, options: EditOptions) -> list[EditPlan]:
        plans = plan_pairs(request, self.styles, self.backbone.token_indices)
        if request.regions and options.instance != "all":
            raise UserError("instance cannot be used together with region maps: drop one of them")
        if options.mode == "plain" and len(plans) > 1:
            raise UserError(
                "mode plain edits one object at a time: use mode routed, or one edit after another"
            )
        return plans


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
