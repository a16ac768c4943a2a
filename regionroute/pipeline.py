"""Editing: a picture, an object word and a style word in; the edited picture and its map out.

Shape legend: B batch, H W pixels of the picture, h w image tokens (the map's grid), C latent
channels, T text tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.adapters import (
    ExpertRegistry,
    RouteContext,
    load_experts,
    read_registry,
    routed,
)
from regionroute.attention import AttentionPlan, AttentionRecorder, mean_map, region_map
from regionroute.backbones.kontext import Backbone, load_backbone
from regionroute.backbones.source import BaseSettings, resolve
from regionroute.errors import UserError
from regionroute.flow import draw_noise, sample
from regionroute.prompts import Prompt
from regionroute.request import EditPlan, EditRequest, plan_edit

EXPERTS_FOLDER = "experts"  # of a base's folder: experts that come with it
MAX_STEPS = 1000  # the scheduler knows no more


@dataclass
class EditResult:
    """An edited picture.

    Attributes:
        image: [3,H,W] float32 in [0,1] on the CPU, the size of the input.
        region_map: [h,w] in [0,1] on the CPU, where the style's words drew attention, 0.5 is the
            boundary; None unless asked for.
        prompt: the text that was encoded.
        settings: everything that is needed to make the picture again, JSON-able.
    """

    image: Tensor
    region_map: Tensor | None
    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)


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
        if experts_dir is not None:
            self.registry = load_experts(experts_dir, backbone)
            self.backbone.transformer.to(backbone.device)
            backbone.settings = _as_trained(backbone.settings, self.registry.extra, experts_dir)

    def check(self, request: EditRequest) -> None:
        """Refuses a request that cannot be carried out, without doing it.

        Raises:
            UserError: unknown style, empty or missing phrase, phrase cut off, bad seed.
        """
        self._plan(request)

    def edit(
        self,
        image: Tensor,
        object: str,
        style: str,
        *,
        prompt: str | Prompt | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        want_map: bool = False,
    ) -> EditResult:
        """Edits one picture [3,H,W] in [0,1]; see `EditRequest` and :meth:`edit_batch`."""
        request = EditRequest(object, style, prompt, seed)
        return self.edit_batch(
            [image], [request], steps=steps, guidance=guidance, want_map=want_map
        )[0]

    @torch.no_grad()
    def edit_batch(
        self,
        images: Sequence[Tensor],
        requests: Sequence[EditRequest],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        want_map: bool = False,
        callback: Callable[[int, float, Tensor], None] | None = None,
    ) -> list[EditResult]:
        """Edits pictures of one size together; a picture does not depend on its neighbours.

        Args:
            images: B tensors [3,H,W] in [0,1], all of one size.
            requests: B requests; objects, styles and seeds may differ.
            steps: model calls, None: the base's own number.
            guidance: None: the base's own.
            want_map: record the region maps; costs a little time and changes no picture.
            callback: called after each step, see `flow.sample`; for progress.

        Returns:
            B results.

        Raises:
            UserError: a request or a setting that cannot be carried out.
            ValueError: not as many requests as pictures, or pictures of several sizes.
        """
        if len(images) != len(requests) or not images:
            raise ValueError(f"{len(images)} pictures and {len(requests)} requests")
        if len({image.shape for image in images}) != 1:
            raise ValueError("the pictures of a batch must have one size")
        steps, guidance = self._checked_settings(steps, guidance)
        plans = [self._plan(request) for request in requests]
        size = images[0].shape[-2], images[0].shape[-1]
        model_size = self.backbone.fit_size(*size)

        context, embeds, pooled, noise = self._encode(images, plans, model_size)
        recorder = _MapRecorder(self, plans, context, embeds) if want_map else None
        with self._routed(plans):
            latents = sample(
                self.backbone.transformer,
                self.backbone.scheduler,
                context,
                embeds,
                pooled,
                steps=steps,
                guidance=guidance,
                noise=noise,
                callback=callback,
                observe=recorder.observe if recorder else None,
            )
        edited = resize(self.backbone.decode_latents(latents), size).cpu()
        maps = recorder.region_maps() if recorder else [None] * len(plans)
        shared: dict[str, Any] = {"steps": steps, "guidance": guidance}
        shared |= {"size": list(size), "model_size": list(model_size)}
        return [
            EditResult(image, grid, plan.prompt.text, self._describe(plan) | shared)
            for image, grid, plan in zip(edited, maps, plans, strict=True)
        ]

    def map_recorder(self) -> AttentionRecorder:
        """A recorder of the blocks and queries that the experts were supervised on."""
        extra = self.registry.extra if self.registry else {}
        return AttentionRecorder(
            layers=extra.get("map_layers", "all"),
            queries=extra.get("map_queries", "target"),
            norm=extra.get("map_norm", "full"),
        )

    def _plan(self, request: EditRequest) -> EditPlan:
        length = self.backbone.settings.max_text_length
        return plan_edit(request, self.registry, self.backbone.tokenizer_2, length)

    def _encode(
        self, images: Sequence[Tensor], plans: list[EditPlan], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Context latents [B,C,h,w], T5 states [B,T,D], pooled state [B,P], noise [B,C,h,w]."""
        context = self.backbone.encode_images(resize(torch.stack(list(images)), size))
        embeds, pooled = self.backbone.encode_prompts([plan.prompt.text for plan in plans])
        noise = torch.cat([draw_noise((1, *context.shape[1:]), plan.seed) for plan in plans])
        return context, embeds, pooled, noise

    def _checked_settings(self, steps: int | None, guidance: float | None) -> tuple[int, float]:
        steps = self.backbone.settings.steps if steps is None else steps
        guidance = self.backbone.settings.guidance if guidance is None else guidance
        if not 1 <= steps <= MAX_STEPS:
            raise UserError(f"steps {steps}: must be between 1 and {MAX_STEPS}")
        if not (math.isfinite(guidance) and guidance >= 0):
            raise UserError(f"guidance {guidance}: must be 0 or more")
        return steps, guidance

    def _routed(self, plans: list[EditPlan]) -> AbstractContextManager[None]:
        if not self.registry:
            return nullcontext()
        ids = torch.tensor([plan.expert for plan in plans], device=self.backbone.device)
        return routed(self.backbone.transformer, RouteContext(ids))

    def _describe(self, plan: EditPlan) -> dict[str, Any]:
        return {
            "prompt": plan.prompt.text,
            "object": plan.object,
            "style": plan.style,
            "base": self.backbone.name,
            "experts": None if self.experts_dir is None else str(self.experts_dir),
            "seed": plan.seed,
            "versions": {name: version(name) for name in ("regionroute", "torch", "diffusers")},
        }


def _as_trained(
    settings: BaseSettings, extra: Mapping[str, Any], folder: str | PathLike[str]
) -> BaseSettings:
    """The base's settings with the text length and picture size the experts were trained at.

    Flux attends to padding and to absolute positions, so both belong to what an expert learned.
    """
    changes = {}
    for key, limit in (("max_text_length", 512), ("resolution", 8192)):
        value = extra.get(key, getattr(settings, key))
        if type(value) is not int or not 1 <= value <= limit:
            raise UserError(f"{folder}/experts.json: {key} must be 1 to {limit}, not {value!r}")
        changes[key] = value
    return dataclasses.replace(settings, **changes)


class _MapRecorder:
    """Collects the maps of every sampling step and turns their mean into region maps."""

    def __init__(
        self, editor: Editor, plans: list[EditPlan], context: Tensor, embeds: Tensor
    ) -> None:
        rows, columns = context.shape[2] // 2, context.shape[3] // 2
        longest = max(len(plan.tokens) for plan in plans)
        index = torch.full((len(plans), 1, longest), -1, dtype=torch.long)
        for row, plan in enumerate(plans):
            index[row, 0, : len(plan.tokens)] = torch.tensor(plan.tokens)
        self.plan = AttentionPlan(
            token_index=index,
            masks=torch.zeros(len(plans), 1, rows, columns),  # nothing is supervised here
            valid=torch.ones(len(plans), 1, dtype=torch.bool),
            text_len=embeds.shape[1],
            image_len=rows * columns,
        ).to(embeds.device)
        self.recorder = editor.map_recorder()
        self.transformer = editor.backbone.transformer
        self.steps: list[Tensor] = []  # [B,1,h,w] each

    @contextmanager
    def observe(self, step: int) -> Iterator[None]:
        """Surrounds one step's model call."""
        with self.recorder.recording(self.transformer, self.plan):
            yield
        self.steps.append(mean_map(self.recorder.maps()))

    def region_maps(self) -> list[Tensor]:
        """B maps [h,w] in [0,1] on the CPU."""
        return list(region_map(torch.stack(self.steps).mean(0))[:, 0].cpu())


def load_editor(
    base: str = "nano",
    experts: str | PathLike[str] | None = "auto",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Editor:
    """Loads a base with experts.

    Args:
        base: see :func:`regionroute.backbones.kontext.load_backbone`.
        experts: their folder; ``auto`` takes the folder that comes with the base; None edits
            zero-shot, with the base alone.
        dtype: of the networks.
        device: where they run.

    Raises:
        UserError: base or experts cannot be loaded.
    """
    if experts == "auto":
        experts = bundled_experts(base)
    if experts is not None:
        read_registry(experts)  # a wrong folder shows before a large base is loaded
    return Editor(load_backbone(base, dtype, device), experts)


def bundled_experts(base: str) -> Path:
    """The experts that come with a base, in its folder ``experts``.

    Raises:
        UserError: there are none.
    """
    source = resolve(base)
    folder = source / EXPERTS_FOLDER if isinstance(source, Path) else None
    if folder is None or not (folder / "experts.json").is_file():
        raise UserError(
            f"base {base} comes without experts: train some with `python train/run.py "
            f"base.name={base}` and pass --experts DIR, or pass --zero-shot to use the base alone"
        )
    return folder


def edit(
    image: Tensor,
    object: str,
    style: str,
    *,
    base: str = "nano",
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
        style: name of the style.
        base: see :func:`load_editor`.
        experts: see :func:`load_editor`.
        device: where to run.
        options: further arguments of :meth:`Editor.edit`.
    """
    return load_editor(base, experts, device=device).edit(image, object, style, **options)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes [B,3,H,W] in [0,1] to ``size`` = (H',W'), antialiased; unchanged at equal size."""
    if (images.shape[-2], images.shape[-1]) == tuple(size):
        return images
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
