"""The Python API: `RegionRoutePipeline`, in the idiom of diffusers' pipelines.

>>> from regionroute import RegionRoutePipeline
>>> pipe = RegionRoutePipeline.from_pretrained("nano-photos")
>>> out = pipe(image, object="cat", style="starry-night", seed=0)  # doctest: +SKIP
>>> out.images[0].save("out.png")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias

import torch
from torch import Tensor

from regionroute.adapters import eject, read_registry
from regionroute.config.choices import Instance, Mode, Quantize, SparseQuality
from regionroute.diffusion.flow import TIMESTEPS
from regionroute.editing.editor import Editor
from regionroute.editing.inputs import (
    OUTPUT_TYPES,
    EditOutput,
    ImageInput,
    OutputType,
    edit_output,
    size_batches,
    to_images,
    to_masks,
    to_pairs,
    to_seeds,
    to_tensors,
)
from regionroute.editing.request import EditOptions, EditRequest, EditResult
from regionroute.editing.sampler import Interrupted
from regionroute.errors import UserError
from regionroute.models import bundled
from regionroute.models.backbone import Backbone
from regionroute.models.devices import pick_device
from regionroute.models.loading import load_base

StepEndCallback: TypeAlias = Callable[
    ["RegionRoutePipeline", int, Tensor, dict[str, Tensor]], Mapping[str, Tensor] | None
]


class RegionRoutePipeline:
    """Restyles named objects in images and keeps the rest; see `from_pretrained`.

    Attributes:
        backbone: the base.
        editor: the engine, for batches in which requests differ (`Editor.edit_batch`).
    """

    def __init__(self, backbone: Backbone, experts: str | PathLike[str] | None = None) -> None:
        self.backbone = backbone
        self._base_settings = backbone.settings
        self._quantized = False
        self._follow_bundled = False  # experts are those of the base, whichever a call needs
        self._interrupt = False
        self.editor = Editor(backbone, experts)

    @classmethod
    def from_pretrained(
        cls,
        base: str | PathLike[str] | None = None,
        *,
        experts: str | PathLike[str] | None = "auto",
        torch_dtype: torch.dtype = torch.float32,
        quantize: Quantize | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> RegionRoutePipeline:
        """Load a base and its experts.

        Args:
            base: an embedded base ("nano-photos", "nano"), a folder in diffusers' layout or a hub
                id; None: the base of the given experts, else "nano-photos".
            experts: a folder with ``experts.json``, or a name as in metadata ("nano/experts");
                "auto": those that come with the base, if any (a call with ``style_image`` takes
                those for style images); "by_example": these; None: zero-shot, in any style.
            torch_dtype: of the networks; bfloat16 for FLUX.1-Kontext on a GPU.
            quantize: store the transformer's blocks in fewer bits, "nf4" or "fp8".
            device: to load to; `to` moves later.
            revision: branch, tag or commit of a hub id; None: its main branch.

        Raises:
            UserError: base or experts cannot be loaded.
        """
        base = str(base) if base is not None else bundled.default_base(experts)
        if experts is not None and experts != "auto":
            experts = bundled.find_experts(experts, base)  # reported before a large base is loaded
        pipe = cls(load_base(base, torch_dtype, device, quantize, revision))
        pipe._quantized = pipe.backbone.quantized is not None
        if experts == "auto":
            pipe._follow_bundled = True
            pipe._load_bundled(by_example=False)
        elif experts is not None:
            pipe.load_experts(experts)
        return pipe

    def load_experts(self, experts: str | PathLike[str] = "auto") -> None:
        """Load style experts in place of the present ones.

        Args:
            experts: a folder with ``experts.json``, or a name as in metadata ("nano/experts");
                "auto": those that come with the base; "by_example": those for style images.

        Raises:
            UserError: there are none, and the present ones stay; or their weights are damaged or
                for another base, and no experts are loaded then.
        """
        if experts is None:  # what `from_pretrained` takes
            raise UserError("experts None: name them; unload_experts() leaves the base alone")
        folder = bundled.find_experts(experts, self.backbone.name)
        self.unload_experts()
        try:
            self.editor = Editor(self.backbone, folder)
        except UserError:
            self.unload_experts()
            raise
        self._follow_bundled = experts == "auto"

    def unload_experts(self) -> None:
        """Remove the experts: the base alone edits zero-shot, in any style."""
        eject(self.backbone.transformer)
        self.backbone.settings = self._base_settings
        self.editor = Editor(self.backbone)
        self._follow_bundled = False

    @property
    def styles(self) -> list[str]:
        """Names that `style` takes; empty without experts."""
        # After a style image those by example are loaded; a name loads the others again.
        folder = bundled.find_bundled_experts(self.backbone.name) if self._follow_bundled else None
        registry = read_registry(folder) if folder else self.editor.registry
        return registry.style_names if registry else []

    @property
    def components(self) -> dict[str, Any]:
        """The networks, tokenizers and scheduler by name, as in the base's own pipeline."""
        family = self.backbone.family
        return {
            name: getattr(self.backbone, name)
            for name in (*family.networks, *family.small_parts)
            if getattr(self.backbone, name) is not None
        }

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base; experts are stored in float32 and cast to the activations."""
        dtype: torch.dtype = self.backbone.text_encoder.dtype
        return dtype

    @property
    def interrupt(self) -> bool:
        """Whether the running call is to stop after its current step."""
        return self._interrupt

    def to(self, device: str | torch.device) -> RegionRoutePipeline:
        """Move all networks to a device; ends model offloading.

        Raises:
            UserError: the device cannot be used here, or a dtype is given.
        """
        if isinstance(device, torch.dtype):
            raise UserError(
                "to() takes a device: choose the dtype with from_pretrained(torch_dtype=)"
            )
        self.backbone.execution_device = None
        self.backbone.to(pick_device(str(device)))
        self.editor.styles.to(self.backbone.device)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Keep the networks on the CPU and move each to the device only while it computes.

        Args:
            device: where to compute.

        Raises:
            UserError: the device cannot be used here, or the base is quantized.
        """
        if self._quantized:
            raise UserError(
                "enable_model_cpu_offload: a quantized base stays on its device; load it without "
                "quantize"
            )
        target = pick_device(str(device))
        self.backbone.to("cpu")
        self.backbone.execution_device = target
        self.editor.styles.to(target)

    def enable_vae_tiling(self) -> None:
        """Encode and decode large images in tiles, which bounds the memory of the VAE.

        Raises:
            UserError: the base's VAE cannot work in tiles.
        """
        vae = self.backbone.vae
        if not hasattr(vae, "use_tiling"):
            raise UserError(
                f"base {self.backbone.name}: its VAE ({type(vae).__name__}) does not work in "
                "tiles: leave out enable_vae_tiling"
            )
        vae.enable_tiling()

    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        object: str | Sequence[str] = "",
        style: str | Sequence[str] = "",
        *,
        style_image: ImageInput | Sequence[ImageInput] | None = None,
        prompt: str | None = None,
        strength: float = 1.0,
        region_mask: ImageInput | Sequence[ImageInput] | None = None,
        mode: Mode | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        instance: Instance = "all",
        lock_background: bool | None = None,
        refine_crop: bool | None = None,
        sparse: bool | None = None,
        sparse_quality: SparseQuality = "balanced",
        force: bool = False,
        batch_size: int = 8,
        callback_on_step_end: StepEndCallback | None = None,
        output_region_maps: bool = True,
        output_type: OutputType = "pil",
    ) -> EditOutput:
        """Edit images; None stands for the default of the base and its experts.

        Args:
            image: a PIL image, an array [H,W,3] (uint8, or float in [0,1]), a tensor [3,H,W] or
                [B,3,H,W] in [0,1], or a list of these, of any sizes; all get the same request.
                A fourth channel is transparency, which is kept.
            object: word or phrase of the object; a list for several objects in one edit.
            style: name or phrase of the style, or a blend ("0.6 pixel-art + 0.4 line-art"); a list
                with one for each object, or one for all.
            style_image: a reference image of the style in place of ``style``, or a list with one
                for each object; for experts trained with ``experts.router=similarity``.
            prompt: own wording, with the object in [brackets] and the style in {braces}; of
                several objects it can only mark the pairs.
            strength: of the style, in [0,1]; 0 is the image itself; below 1 only routed.
            region_mask: where to restyle, [H,W] of the image's size (PIL, or boolean, uint8 or
                float in [0,1]), in place of the predicted region; a list for several objects.
            mode: "routed": the region map decides where the style acts; "plain": the prompt alone,
                as in the paper.
            num_inference_steps: sampling steps.
            guidance_scale: embedded or classifier-free, as the base was trained.
            generator: determines the noise, as in diffusers: one, from which each image draws its
                own noise, or one per image. ``torch.Generator().manual_seed(0)`` gives the same
                image as ``seed=0`` and as ``regionroute edit --seed 0``; a generator that was used
                before goes on to new noise. The noise does not depend on the device.
            seed: in place of ``generator``: one for all images, or one per image; the default is
                0, so that a call can be repeated.
            instance: which of several objects of the word: "all", "largest", "leftmost",
                "rightmost", "topmost" or "bottommost"; routed.
            lock_background: keep every pixel outside the region bit for bit.
            refine_crop: restyle small objects of large images once more in a crop around them.
            sparse: after the first call compute only the region in most steps; routed, or with
                ``region_mask`` and ``lock_background``. None: where it pays (routed, a locked
                background, 4 steps or more, 512 px or more).
            sparse_quality: how close a sparse edit is to a dense one: "fast", "balanced" or
                "high"; docs/measured/sparse.md has the error and the time of each.
            force: edit even if the object seems to be absent; without it such an image is left
                unchanged, with a warning in its metadata (`routing.presence`).
            batch_size: images of one size to edit at a time.
            callback_on_step_end: called after each step as ``callback(pipe, step, timestep,
                {"latents": latents})`` with latents [B,C,h,w]; may return ``{"latents": ...}`` to
                replace them, set ``pipe._interrupt = True`` to stop, or raise.
            output_region_maps: return region maps, of the objects that were edited; of an image in
                which none was found, where the model looked.
            output_type: of images and maps: "pil", "np" or "pt".

        Returns:
            The edits. After an interruption the current batch as far as it was sampled, later
            images unchanged, both with ``"interrupted": True`` in their metadata.

        Raises:
            UserError: an argument that cannot be used.
        """
        self._interrupt = False
        if output_type not in OUTPUT_TYPES:
            raise UserError(
                f"output_type {output_type!r}: must be one of {', '.join(OUTPUT_TYPES)}"
            )
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be at least 1")
        loaded = to_images(image)
        style_images = () if style_image is None else tuple(to_tensors(style_image, "style_image"))
        self._load_bundled(by_example=bool(style_images))
        (words, name), *also = to_pairs(object, style, len(style_images))
        regions = to_masks(region_mask, "region_mask")
        requests = [
            EditRequest(words, name, prompt, one, tuple(also), regions, style_images)
            for one in to_seeds(generator, seed, len(loaded))
        ]
        options = EditOptions(
            steps=num_inference_steps, guidance=guidance_scale, mode=mode,
            lock_background=lock_background, strength=strength, instance=instance,
            refine_crop=refine_crop, sparse=sparse, force=force, sparse_quality=sparse_quality,
        )  # fmt: skip
        images = [one.rgb for one in loaded]
        results = self._edit(
            images, requests, options, batch_size, callback_on_step_end, output_region_maps
        )
        return edit_output(loaded, results, output_type)

    def _edit(
        self,
        images: Sequence[Tensor],
        requests: Sequence[EditRequest],
        options: EditOptions,
        batch_size: int,
        callback: StepEndCallback | None,
        want_map: bool,
    ) -> list[EditResult]:
        """Edit in batches of one size; results in the order of the images."""

        def on_step(step: int, sigma: float, latents: Tensor) -> None:
            if callback is not None:
                timestep = torch.tensor(sigma * TIMESTEPS)
                changed = callback(self, step, timestep, {"latents": latents}) or {}
                if "latents" in changed and changed["latents"] is not latents:
                    latents.copy_(changed["latents"])
            if self._interrupt:
                raise Interrupted(latents)

        results = [
            EditResult(image, None, "", {"interrupted": True}) for image in images
        ]  # of batches that an interruption prevents
        for rows in size_batches([image.shape for image in images], batch_size):
            if self._interrupt:
                break
            edited = self.editor.edit_batch(
                [images[row] for row in rows], [requests[row] for row in rows], options,
                want_map=want_map, callback=on_step,
            )  # fmt: skip
            for row, result in zip(rows, edited, strict=True):
                results[row] = result
        return results

    def _load_bundled(self, *, by_example: bool) -> None:
        """Load the base's own experts of the kind that a call needs, unless the user chose some."""
        if not self._follow_bundled:
            return
        folder = bundled.find_bundled_experts(self.backbone.name, by_example=by_example)
        if folder is not None and folder != self.editor.experts_dir:
            self.load_experts(folder)
            self._follow_bundled = True
