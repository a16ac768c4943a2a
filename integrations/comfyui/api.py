"""ComfyUI as the nodes see it: its node API, progress, interruption, devices and LoRA loader.

Outside of ComfyUI the node API is `shim`, and progress and interruption do nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

try:
    from comfy_api.latest import ComfyExtension, io
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "comfy_api":
        raise  # ComfyUI is there, but incomplete
    from .shim import ComfyExtension, io

__all__ = [
    "CATEGORY",
    "ComfyExtension",
    "Pipeline",
    "add_lora",
    "io",
    "pick_device",
    "step_callback",
]

CATEGORY = "RegionRoute"
Pipeline = io.Custom("REGIONROUTE_PIPELINE")


def comfy_module(name: str) -> Any:
    """A module of ComfyUI's package `comfy`; None outside of ComfyUI."""
    try:
        return importlib.import_module(f"comfy.{name}")
    except ModuleNotFoundError:
        return None


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto": the one that ComfyUI computes on.

    Raises:
        UserError: it cannot be used here.
    """
    from regionroute.models import devices

    management = comfy_module("model_management")
    if name == "auto" and management is not None:
        device: torch.device = management.get_torch_device()
        return device
    return devices.pick_device(None if name == "auto" else name)


def step_callback(total: int) -> Callable[..., None]:
    """A `callback_on_step_end` that moves ComfyUI's progress bar and obeys its *Cancel*.

    Args:
        total: number of steps of the whole call.
    """
    utils, management = comfy_module("utils"), comfy_module("model_management")
    bar = utils.ProgressBar(total) if utils else None

    def advance(*_: Any) -> None:
        if management:
            management.throw_exception_if_processing_interrupted()
        if bar:
            bar.update(1)

    return advance


def add_lora(model: Any, lora: Mapping[str, Tensor], strength: float, source: str) -> Any:
    """A copy of ComfyUI's MODEL with a LoRA.

    ComfyUI itself skips layers that it does not know or that have another size, with no more than
    a line in its log.

    Args:
        model: ComfyUI's `ModelPatcher`.
        lora: by the names of the original Flux model, see
            `regionroute.adapters.files.formats.to_original`.
        strength: factor on the LoRA.
        source: names the LoRA in errors.

    Raises:
        UserError: the model lacks a layer of the LoRA, or has it in another size.
    """
    from regionroute.errors import UserError

    utils, loras, loader = comfy_module("utils"), comfy_module("lora"), comfy_module("sd")
    if loader is None:
        raise UserError("a MODEL can be changed inside ComfyUI only")
    keys = loras.model_lora_keys_unet(model.model, {})
    for up_name in (name for name in lora if name.endswith(".lora_up.weight")):
        layer = up_name.removesuffix(".lora_up.weight")
        if layer not in keys:
            raise UserError(f"{source}: this MODEL has no layer {layer}, choose its own experts")
        weight = utils.get_attr(model.model, keys[layer])
        fits = (lora[up_name].shape[0], lora[f"{layer}.lora_down.weight"].shape[1])
        plain = weight.ndim == 2 and weight.is_floating_point()  # packed 4-bit weights are neither
        if plain and tuple(weight.shape) != fits:
            raise UserError(
                f"{source}: its layer {layer} is {fits[0]}x{fits[1]}, that of this MODEL "
                f"{weight.shape[0]}x{weight.shape[1]}: choose experts that were trained on this "
                "MODEL's base"
            )
    return loader.load_lora_for_models(model, None, dict(lora), strength, 0)[0]
