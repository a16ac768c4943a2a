"""Editing: a picture, an object word and a style word in; the edited picture and its map out.

Shape legend: B batch, H W pixels of the picture, h w image tokens (the map's grid), C latent
channels, T text tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from regionroute.adapters import ExpertRegistry, load_experts, read_registry
from regionroute.attention import AttentionRecorder
from regionroute.backbones.kontext import Backbone, load_backbone
from regionroute.backbones.source import BaseSettings, resolve
from regionroute.config import RoutingConfig
from regionroute.errors import UserError
from regionroute.flow import StepCallback, draw_noise
from regionroute.latents import resize
from regionroute.prompts import Prompt
from regionroute.request import MODES, EditOptions, EditPlan, EditRequest, plan_clauses
from regionroute.routing import composite, pixel_gates
from regionroute.sampler import Sampled, Sampler, Task, gates_of_regions, given_regions

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
        self.routing, self._routing_was_stored = RoutingConfig(branch="base"), False
        if experts_dir is not None:
            self.registry = load_experts(experts_dir, backbone)
            self.backbone.transformer.to(backbone.device)
            self.routing = _routing(self.registry.extra, experts_dir)
            self._routing_was_stored = "routing" in self.registry.extra
            backbone.settings = _as_trained(backbone.settings, self.registry.extra, experts_dir)

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
        style: str,
        *,
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
        request = EditRequest(object, style, prompt, seed, tuple(also), tuple(regions))
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
        if len(images) != len(requests) or not images:
            raise ValueError(f"{len(images)} pictures and {len(requests)} requests")
        if len({image.shape for image in images}) != 1:
            raise ValueError("the pictures of a batch must have one size")
        options = self.resolved(options or EditOptions())
        clauses = [self._clauses(request, options) for request in requests]
        if len({len(plans) for plans in clauses}) != 1:
            raise ValueError("the pictures of a batch must have equally many objects")
        sources = torch.stack(list(images))
        regions = given_regions(requests, sources)
        task = self._task(sources, clauses, options, regions, want_map, callback)
        sampler = Sampler(
            self.backbone, self.map_recorder(), self.routing, self.registry is not None
        )
        sampled = sampler.routed(task) if options.mode == "routed" else sampler.plain(task)
        size = sources.shape[-2], sources.shape[-1]
        edited = resize(self.backbone.decode_latents(sampled.latents), size).cpu()
        if options.lock_background:
            assert sampled.gates is not None
            if regions is None:
                regions = pixel_gates(sampled.gates.cpu(), sources, self.routing)
            edited = composite(edited, sources, regions)
        facts = {**dataclasses.asdict(options), "size": [*size]}
        facts["model_size"] = [*self.backbone.fit_size(*size)]
        return [
            EditResult(
                image,
                sampled.shown[i].cpu() if want_map and sampled.shown is not None else None,
                " | ".join(plan.prompt.text for plan in plans),
                self._describe(plans, sampled, i) | facts,
            )
            for i, (image, plans) in enumerate(zip(edited, clauses, strict=True))
        ]

    def _task(
        self,
        sources: Tensor,
        clauses: list[list[EditPlan]],
        options: EditOptions,
        regions: Tensor | None,
        want_map: bool,
        callback: StepCallback | None,
    ) -> Task:
        size = self.backbone.fit_size(sources.shape[-2], sources.shape[-1])
        context = self.backbone.encode_images(resize(sources, size))
        noise = [draw_noise((1, *context.shape[1:]), plans[0].seed) for plans in clauses]
        assert options.steps is not None
        assert options.guidance is not None
        task = Task(
            clauses, context, torch.cat(noise), options.steps, options.guidance, callback,
            options.strength, bool(options.lock_background), want_map,
        )  # fmt: skip
        if regions is None:
            return task
        return dataclasses.replace(task, regions=gates_of_regions(regions, task.grid).to(context))

    def resolved(self, options: EditOptions) -> EditOptions:
        """The options with nothing left open.

        Raises:
            UserError: a value out of range, or one that the mode has no use for.
        """
        mode = options.mode or ("routed" if self._routing_was_stored else "plain")
        if mode not in MODES:
            raise UserError(f"mode {mode!r}: must be one of {', '.join(MODES)}")
        if not (0 <= options.strength <= 1):
            raise UserError(f"strength {options.strength}: must be between 0 and 1")
        if mode == "plain" and options.strength != 1:
            raise UserError("a strength below 1 needs mode routed")
        steps, guidance = self._checked_settings(options.steps, options.guidance)
        lock = options.lock_background
        return EditOptions(
            steps, guidance, mode, mode == "routed" if lock is None else lock, options.strength
        )

    def map_recorder(self) -> AttentionRecorder:
        """A recorder of the blocks and queries that the experts were supervised on."""
        extra = self.registry.extra if self.registry else {}
        return AttentionRecorder(
            layers=extra.get("map_layers", "all"),
            queries=extra.get("map_queries", "target"),
            norm=extra.get("map_norm", "full"),
        )

    def _clauses(self, request: EditRequest, options: EditOptions) -> list[EditPlan]:
        length = self.backbone.settings.max_text_length
        plans = plan_clauses(request, self.registry, self.backbone.tokenizer_2, length)
        if options.mode == "plain" and len(plans) > 1:
            raise UserError(
                "mode plain edits one object at a time: use mode routed, or one edit after another"
            )
        return plans

    def _checked_settings(self, steps: int | None, guidance: float | None) -> tuple[int, float]:
        steps = self.backbone.settings.steps if steps is None else steps
        guidance = self.backbone.settings.guidance if guidance is None else guidance
        if not 1 <= steps <= MAX_STEPS:
            raise UserError(f"steps {steps}: must be between 1 and {MAX_STEPS}")
        if not (math.isfinite(guidance) and guidance >= 0):
            raise UserError(f"guidance {guidance}: must be 0 or more")
        return steps, guidance

    def _describe(self, plans: list[EditPlan], sampled: Sampled, row: int) -> dict[str, Any]:
        one = len(plans) == 1
        facts: dict[str, Any] = {
            "prompt": plans[0].prompt.text if one else [plan.prompt.text for plan in plans],
            "object": plans[0].object if one else [plan.object for plan in plans],
            "style": plans[0].style if one else [plan.style for plan in plans],
            "base": self.backbone.name,
            "experts": None if self.experts_dir is None else str(self.experts_dir),
            "seed": plans[0].seed,
            "versions": {name: version(name) for name in ("regionroute", "torch", "diffusers")},
        }
        if sampled.level is not None:
            level = sampled.level[row].tolist()
            facts["attention_on_region"] = [round(value, 2) for value in level]
            facts["warnings"] = [
                f'"{plan.object}" was hardly found in the picture: its attention is only '
                f"{value:.1f} times that of an even spread"
                for plan, value in zip(plans, level, strict=True)
                if value < self.routing.confidence
            ]
        return facts


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


def _routing(extra: Mapping[str, Any], folder: str | PathLike[str]) -> RoutingConfig:
    try:
        return RoutingConfig.model_validate(extra.get("routing", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("routing", *first["loc"])))
        raise UserError(f"{folder}/experts.json: {where}: {first['msg']}") from error


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
