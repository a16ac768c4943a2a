"""Whole pictures restyled by a diffusion pipeline: image-to-image or instruction (Kontext).

Any pipeline of diffusers that takes an image and a prompt serves, from a local folder or the hub,
with an optional style LoRA. One pipeline a process serves all styles; LoRAs are switched.

    pixel-art:
      stylizer: diffusion
      settings: {model: black-forest-labs/FLUX.1-Kontext-dev, lora: pixel-art.safetensors}
"""

import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from pseudo_labels.segment.weights import fingerprint
from regionroute.data.images import from_pil, to_pil
from regionroute.data.manifest import StyleSpec
from regionroute.data.prompts import RESTYLE_TEMPLATE
from regionroute.errors import UserError
from regionroute.files import settings_hash
from regionroute.models.devices import pick_device

TEMPLATE = "a picture in {style} style"  # for pipelines that are told what comes out
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REVISION = 1  # raise when this module's own arithmetic changes: it is part of the fingerprint


class DiffusionStylizer:
    """Restyles whole pictures by a pipeline of diffusers.

    Args:
        model: local folder or hub id of a pipeline.
        prompt: what it is told, with {style} for the style's words; None: the restyling instruction
            for pipelines that edit (Kontext), the description of a picture for the others.
        strength: how far image-to-image may leave the photo, 0 to 1.
        steps: model calls, None for the pipeline's own.
        guidance: guidance scale, None for the pipeline's own.
        negative: negative prompt, where the pipeline has one.
        size: longer side in pixels at which it works, None for the picture's own.
        lora: LoRA file or hub id of one, None for none.
        lora_scale: how much of it.
        dtype: float32, bfloat16 or float16.
        device: None for a GPU where there is one.

    Raises:
        UserError: a value out of its range.
    """

    needs: frozenset[str] = frozenset({"text"})

    def __init__(
        self,
        model: str,
        *,
        prompt: str | None = None,
        strength: float = 0.6,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | None = None,
        size: int | None = None,
        lora: str | None = None,
        lora_scale: float = 1.0,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise UserError("a diffusion style needs 'model', a folder or hub id of a pipeline")
        if not 0 < strength <= 1:
            raise UserError(f"the strength of a diffusion style is {strength}, use above 0 to 1")
        if steps is not None and steps < 1:
            raise UserError(f"a diffusion style has {steps} steps, use 1 or more")
        if size is not None and size < 32:
            raise UserError(f"the size of a diffusion style is {size}, use 32 or more")
        if dtype not in _DTYPES:
            raise UserError(
                f"the dtype of a diffusion style is {dtype!r}, use {', '.join(_DTYPES)}"
            )
        if prompt is not None and "{style}" not in prompt:
            raise UserError("the prompt of a diffusion style must hold {style}")
        self._model, self._lora, self._lora_scale = model, lora, lora_scale
        self._dtype, self._device = dtype, device
        self._prompt, self._size = prompt, size
        self._call: dict[str, Any] = {
            "strength": strength,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "negative_prompt": negative,
        }
        settings = [_REVISION, prompt, size, self._call, lora_scale if lora else None, dtype]
        weights = [fingerprint(model), fingerprint(lora) if lora else None]
        self.fingerprint = f"diffusion {settings_hash([settings, weights])}"

    def load(self) -> None:
        """Load the pipeline and the LoRA now, so that what is wrong with them is told at once.

        Raises:
            UserError: they are not there, damaged, or no such things.
        """
        with self._adapted():
            pass

    def stylize(
        self,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """See `Stylizer.stylize`; the mask is not used."""
        if content.ndim == 4:
            return torch.stack(
                [self.stylize(picture, style, generator=generator) for picture in content]
            )
        with self._adapted() as pipeline:
            height, width = content.shape[-2:]
            size = _fit(height, width, self._size, 2 * pipeline.vae_scale_factor)
            picture = to_pil(content).resize(size[::-1], Image.Resampling.LANCZOS)
            styled = pipeline(**self._arguments(pipeline, picture, style, size, generator)).images[
                0
            ]
        return from_pil(styled.resize((width, height), Image.Resampling.LANCZOS))

    def _arguments(
        self,
        pipeline: Any,
        picture: Image.Image,
        style: StyleSpec,
        size: tuple[int, int],
        generator: Generator | None,
    ) -> dict[str, Any]:
        """What this pipeline takes of what we have to say."""
        known = inspect.signature(pipeline.__call__).parameters
        usual = TEMPLATE if "strength" in known else RESTYLE_TEMPLATE
        wanted = {
            "image": picture,
            "prompt": (self._prompt or usual).format(style=style.words),
            "height": size[0],
            "width": size[1],
            "max_area": size[0] * size[1],
            "_auto_resize": False,  # Kontext would choose another size by itself
            "generator": generator,
            **self._call,
        }
        steps, strength = self._call["num_inference_steps"], self._call["strength"]
        if "strength" in known and steps is not None:
            # Image-to-image takes that share of the steps only, and fails when none is left.
            wanted["num_inference_steps"] = max(steps, math.ceil(1 / strength))
        return {key: v for key, v in wanted.items() if key in known and v is not None}

    @contextmanager
    def _adapted(self) -> Iterator[Any]:
        """The shared pipeline with this style's LoRA at work, or none."""
        device = str(pick_device(self._device))
        pipeline = _pipeline(self._model, self._dtype, device)
        if self._lora is None:
            if getattr(pipeline, "peft_config", None) or _adapters(pipeline):
                pipeline.disable_lora()
        else:
            name = _load_lora(pipeline, self._lora)
            pipeline.enable_lora()
            pipeline.set_adapters([name], [self._lora_scale])
        yield pipeline


@functools.cache
def _pipeline(model: str, dtype: str, device: str) -> Any:
    """One pipeline a process for all styles that use it."""
    from diffusers import AutoPipelineForImage2Image, DiffusionPipeline

    local = Path(model).expanduser().is_dir()
    if local and not (Path(model) / "model_index.json").is_file():
        raise UserError(f"{model}: no model_index.json in this folder, copy the whole pipeline")
    options = {"dtype": _DTYPES[dtype], "local_files_only": local}
    try:
        try:
            pipeline = AutoPipelineForImage2Image.from_pretrained(model, **options)
        except ValueError:  # not in its list, which lacks editors such as InstructPix2Pix
            pipeline = DiffusionPipeline.from_pretrained(model, **options)
    # What the library raises on files that are missing, damaged or something else.
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        problem = (
            "this folder holds no pipeline of diffusers, or it is damaged"
            if local
            else "no such folder, and the hub cannot be reached or has no such pipeline"
        )
        raise UserError(f"{model}: {problem} ({reason})") from error
    known = inspect.signature(pipeline.__call__).parameters
    if "image" not in known or "prompt" not in known:
        raise UserError(
            f"{model}: {type(pipeline).__name__} does not take an image and a prompt, give an "
            "image-to-image or Kontext pipeline"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _adapters(pipeline: Any) -> set[str]:
    if not hasattr(pipeline, "get_list_adapters"):
        return set()
    return {name for names in pipeline.get_list_adapters().values() for name in names}


def _load_lora(pipeline: Any, lora: str) -> str:
    """The adapter's name; loaded once a pipeline."""
    name = f"style_{settings_hash([lora, fingerprint(lora)])}"
    if name in _adapters(pipeline):
        return name
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"{lora}: {type(pipeline).__name__} takes no LoRA, leave it out")
    try:
        pipeline.load_lora_weights(lora, adapter_name=name)
    # safetensors, peft and the hub each have their own.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{lora}: this LoRA cannot be loaded ({reason})") from error
    if name not in _adapters(pipeline):  # unknown keys are passed over in silence
        raise UserError(f"{lora}: this LoRA holds no layer of {type(pipeline).__name__}")
    return name


def _fit(height: int, width: int, size: int | None, multiple: int) -> tuple[int, int]:
    """Sides near the wished size, as multiples of what the pipeline's latents need."""
    scale = 1.0 if size is None else size / max(height, width)
    sides = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
    return sides[0], sides[1]
