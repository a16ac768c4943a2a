"""Whole images restyled by a diffusion pipeline: image-to-image or instruction (Kontext).

Any pipeline of diffusers that takes an image and a prompt works, from a local folder or the hub,
with one or several LoRAs. One pipeline per process serves all styles; LoRAs are switched.

    pixel-art:
      stylizer: diffusion
      settings: {model: black-forest-labs/FLUX.1-Kontext-dev, lora: pixel-art.safetensors}
    ghibli:
      stylizer: diffusion
      settings:
        model: black-forest-labs/FLUX.1-dev
        loras: [{file: ghibli.safetensors}, {file: omniconsistency.safetensors, scale: 0.8}]
"""

import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Generator, Tensor

from pseudo_labels.segment.weights import fingerprint
from pseudo_labels.stylize.base import Number, Stylizer
from regionroute.config.base import Section
from regionroute.config.choices import Dtype
from regionroute.data.images import from_pil, to_pil
from regionroute.data.manifest import StyleSpec
from regionroute.data.prompts import RESTYLE_TEMPLATE
from regionroute.errors import UserError, first_line
from regionroute.files import settings_hash
from regionroute.hub_names import (
    hub_arguments,
    hub_commit,
    hub_head,
    split_revision,
    used_name,
)
from regionroute.models.devices import pick_device
from regionroute.pretrained import load_errors

TEMPLATE = "a picture in {style} style"  # for pipelines whose prompt describes the result
_REVISION = 1  # part of the fingerprint; raise when this module's own arithmetic changes


class LoraSettings(Section):
    """One LoRA of several that are used together."""

    file: str = Field(min_length=1, description="LoRA file, or hub id of one, also ID@REVISION")
    scale: Number = Field(1.0, description="weight of the LoRA")


class DiffusionSettings(Section):
    """Settings of `DiffusionStylizer`."""

    model: str = Field(min_length=1, description="folder or hub id of a pipeline, also ID@REVISION")
    prompt: str | None = Field(
        None,
        description="the prompt, with {style} for the style's words; null: an instruction for "
        "pipelines that edit (Kontext), a description of the result for the others",
    )
    strength: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.6, description="how far image-to-image may depart from the photo, above 0 to 1"
    )
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="denoising steps; null: the pipeline's default"
    )
    guidance: Number | None = Field(
        None, description="guidance scale; null: the pipeline's default"
    )
    negative: str | None = Field(None, description="negative prompt, where the pipeline takes one")
    size: Annotated[int, Field(ge=32)] | None = Field(
        None, description="longer side in pixels at which the pipeline works; null: the image's"
    )
    lora: str | None = Field(None, description="LoRA file or hub id of one; null: none")
    lora_scale: Number = Field(1.0, description="weight of `lora`")
    loras: list[LoraSettings] = Field(
        [],
        description="several LoRAs used together, in place of `lora`: for example a style LoRA and "
        "one that keeps the content (OmniConsistency), each with its scale",
    )
    dtype: Dtype = "float32"
    device: str | None = Field(None, description="null: a GPU if there is one")

    @model_validator(mode="after")
    def _consistent(self) -> "DiffusionSettings":
        if self.prompt is not None and "{style}" not in self.prompt:
            raise UserError("'prompt' must contain {style}")
        if self.lora is not None and self.loras:
            raise UserError("give 'lora' or 'loras', not both")
        files = [item.file for item in self.loras]
        if len(set(files)) < len(files):
            raise UserError("'loras' names a file twice")
        return self

    @property
    def adapters(self) -> list[LoraSettings]:
        """All LoRAs, whichever way they are given."""
        if self.lora is None:
            return self.loras
        return [LoraSettings(file=self.lora, scale=self.lora_scale)]


class DiffusionStylizer(Stylizer[DiffusionSettings]):
    """Restyles whole images by a pipeline of diffusers.

    Args:
        settings: pipeline, LoRAs and sampling; nothing is loaded yet.
    """

    kind = "diffusion"
    settings_class = DiffusionSettings
    heavy = True
    needs: frozenset[str] = frozenset({"text"})

    def __init__(self, settings: DiffusionSettings) -> None:
        self._call: dict[str, Any] = {
            "strength": settings.strength,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "negative_prompt": settings.negative,
        }
        scale = settings.lora_scale if settings.lora else None
        facts = [_REVISION, settings.prompt, settings.size, self._call, scale, settings.dtype]
        weights: list[Any] = [
            fingerprint(settings.model),
            fingerprint(settings.lora) if settings.lora else None,
        ]
        weights += [[fingerprint(item.file), item.scale] for item in settings.loras]
        super().__init__(settings, settings_hash([facts, weights]))

    def load(self) -> None:
        """Load the pipeline and the LoRAs now, so that problems are reported at once.

        Raises:
            UserError: one of them is missing, damaged, or of another kind.
        """
        with self._adapted():
            pass

    def stylize(
        self,
        image: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """See `Stylizer.stylize`; the mask is not used."""
        with self._adapted() as pipeline:
            height, width = image.shape[-2:]
            size = _fit(height, width, self.settings.size, 2 * pipeline.vae_scale_factor)
            resized = to_pil(image).resize(size[::-1], Image.Resampling.LANCZOS)
            arguments = self._arguments(pipeline, resized, style, size, generator)
            styled = pipeline(**arguments).images[0]
        return from_pil(styled.resize((width, height), Image.Resampling.LANCZOS))

    def _arguments(
        self,
        pipeline: Any,
        image: Image.Image,
        style: StyleSpec,
        size: tuple[int, int],
        generator: Generator | None,
    ) -> dict[str, Any]:
        """Arguments of the call, limited to those this pipeline takes."""
        known = inspect.signature(pipeline.__call__).parameters
        usual = TEMPLATE if "strength" in known else RESTYLE_TEMPLATE
        wanted = {
            "image": image,
            "prompt": (self.settings.prompt or usual).format(style=style.words),
            "height": size[0],
            "width": size[1],
            "max_area": size[0] * size[1],
            "_auto_resize": False,  # Kontext would choose another size
            "generator": generator,
            **self._call,
        }
        steps, strength = self.settings.steps, self.settings.strength
        if "strength" in known and steps is not None:
            # Image-to-image runs only this share of the steps, and fails when none is left.
            wanted["num_inference_steps"] = max(steps, math.ceil(1 / strength))
        return {key: v for key, v in wanted.items() if key in known and v is not None}

    @contextmanager
    def _adapted(self) -> Iterator[Any]:
        """The shared pipeline with this style's LoRAs active, or none."""
        device = str(pick_device(self.settings.device))
        pipeline, used = _pipeline(self.settings.model, self.settings.dtype, device)
        chosen = self.settings.adapters
        self.networks = {"model": used} if used != self.settings.model else {}
        if not chosen:
            if getattr(pipeline, "peft_config", None) or _adapters(pipeline):
                pipeline.disable_lora()
        else:
            names = []
            for item in chosen:
                source = _lora_source(item.file)
                names.append(_load_lora(pipeline, source))
                if source != item.file:
                    self.networks[f"lora {item.file}"] = source
            pipeline.enable_lora()
            pipeline.set_adapters(names, [item.scale for item in chosen])
        yield pipeline


@functools.cache
def _pipeline(model: str, dtype: str, device: str) -> tuple[Any, str]:
    """One pipeline per process for all styles that use it, and its name with its commit."""
    from diffusers import AutoPipelineForImage2Image, DiffusionPipeline

    local = Path(model).expanduser().is_dir()
    if local and not (Path(model) / "model_index.json").is_file():
        raise UserError(f"{model}: no model_index.json in this folder, copy the whole pipeline")
    with load_errors(model, model, "a pipeline of diffusers"):
        used = used_name(model, hub_commit(model, "model_index.json"))
        source, where = hub_arguments(used)
        options = {"dtype": getattr(torch, dtype), **where}
        try:
            pipeline = AutoPipelineForImage2Image.from_pretrained(source, **options)
        except ValueError:  # its list lacks editors such as InstructPix2Pix
            pipeline = DiffusionPipeline.from_pretrained(source, **options)
    known = inspect.signature(pipeline.__call__).parameters
    if "image" not in known or "prompt" not in known:
        raise UserError(
            f"{model}: {type(pipeline).__name__} does not take an image and a prompt, give an "
            "image-to-image or Kontext pipeline"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device), used


def _adapters(pipeline: Any) -> set[str]:
    if not hasattr(pipeline, "get_list_adapters"):
        return set()
    return {name for names in pipeline.get_list_adapters().values() for name in names}


@functools.cache
def _lora_source(lora: str) -> str:
    """A LoRA's file, or its name on the hub with the commit that is loaded."""
    try:
        return hub_head(lora)
    except OSError as error:
        raise UserError(
            f"{lora}: no such file, and the hub cannot be reached or has no such LoRA "
            f"({first_line(error)})"
        ) from error


def _load_lora(pipeline: Any, lora: str) -> str:
    """Name of the adapter; each is loaded once per pipeline."""
    name = f"style_{settings_hash([lora, fingerprint(lora)])}"
    if name in _adapters(pipeline):
        return name
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"{lora}: {type(pipeline).__name__} takes no LoRA, remove the setting")
    try:
        source, revision = split_revision(lora)
        options = {} if revision is None else {"revision": revision}
        pipeline.load_lora_weights(source, adapter_name=name, **options)
    # safetensors, peft and the hub each have their own.
    except Exception as error:
        raise UserError(f"{lora}: this LoRA cannot be loaded ({first_line(error)})") from error
    if name not in _adapters(pipeline):  # unknown keys are skipped silently
        raise UserError(f"{lora}: this LoRA has no layer of {type(pipeline).__name__}")
    return name


def _fit(height: int, width: int, size: int | None, multiple: int) -> tuple[int, int]:
    """Height and width near the requested size, as multiples that the latents need."""
    scale = 1.0 if size is None else size / max(height, width)
    sides = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
    return sides[0], sides[1]
