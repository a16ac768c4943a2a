"""The stages that no command of the project does: weights, load check, stock pipeline.

Each is started in a process of its own: ``python -m regionroute.rehearsal.work STAGE FOLDER``.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regionroute.errors import UserError, command
from regionroute.files import read_json, write_json
from regionroute.models.devices import quiet_libraries
from regionroute.rehearsal.settings import Settings, read_settings

MOST_DIFFERENCE = 1e-2  # mean, of images in [0,1]


@command
def main(argv: list[str] | None = None) -> int:
    """Runs one of `STAGES`.

    Args:
        argv: stage and folder of the rehearsal.

    Raises:
        UserError: what the stage checks does not hold.
    """
    stage, folder = sys.argv[1:] if argv is None else argv
    quiet_libraries()
    STAGES[stage](read_settings(Path(folder)))
    return 0


def start(settings: Settings) -> None:
    """Imports what every stage imports: memory that no plan counts."""
    import deepspeed  # noqa: F401
    from diffusers import FluxKontextPipeline  # noqa: F401
    from transformers import Qwen3ForCausalLM, T5EncoderModel  # noqa: F401

    import regionroute.pipeline  # noqa: F401

    if settings.quantize == "nf4":
        import bitsandbytes  # noqa: F401


def write(settings: Settings) -> None:
    """Configurations and weights."""
    from regionroute.rehearsal.bases import write_configurations
    from regionroute.rehearsal.weights import write_weights

    write_configurations(settings.name, settings.base, settings.shape, settings.quantize)
    write_weights(settings.base, settings.quantize, settings.seed)


def load(settings: Settings) -> None:
    """Loads the base as every command does, and reads every weight, network by network."""
    from regionroute.models.loading import load_base

    base = load_base(str(settings.base), torch.bfloat16, quantize=settings.quantize)
    counts = {}
    for part in list(base.family.networks):
        network: nn.Module = getattr(base, part)
        counts[part] = network.num_parameters()  # type: ignore[operator]
        _check_finite(part, network)
        setattr(base, part, nn.Module())
        del network
        gc.collect()  # its mapped files count as memory until it is gone
    print(f"{base.family.pipeline} {base.fingerprint}: {counts}")


def _check_finite(part: str, network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{part}: {name} has values that are not finite")


def stock(settings: Settings) -> None:
    """The exported expert in the stock pipeline of the base's class, key by key, and its image."""
    import diffusers
    from PIL import Image
    from safetensors.torch import load_file
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from regionroute.data.images import read_image
    from regionroute.models.loading import load_base

    (file,) = sorted(settings.exported.rglob("*.safetensors"))
    base = load_base(str(settings.base), torch.bfloat16, quantize=settings.quantize)
    parts = {
        name: getattr(base, name) for name in (*base.family.networks, *base.family.small_parts)
    }
    extra: dict[str, Any] = {}
    if base.family.classifier_free:
        extra["is_distilled"] = base.distilled
    pipe = getattr(diffusers, base.family.pipeline)(**parts, **extra)
    pipe.set_progress_bar_config(disable=True)
    if base.quantized == "nf4":
        base.transformer.is_loaded_in_4bit = True  # PEFT asks this of a base in 4 bits
    photo = Image.open(settings.photo).convert("RGB")
    ours = read_image(settings.edited("plain"))
    call = _call(settings, base, photo)

    def image() -> torch.Tensor:
        generator = torch.Generator().manual_seed(settings.seed)
        found: torch.Tensor = pipe(**call, generator=generator).images[0]
        return found.float().cpu()

    before = image()
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    count = check_keys(base.transformer, load_file(file))
    theirs = image()
    # How much rounding alone changes: the same pipeline with another attention kernel.
    with sdpa_kernel(SDPBackend.MATH):
        rounding = (image() - theirs).abs()
    difference, effect = (theirs - ours).abs(), (theirs - before).abs()
    found = {
        "keys": count,
        "mean_difference": difference.mean().item(),
        "largest_difference": difference.max().item(),
        "mean_difference_of_rounding": rounding.mean().item(),
        "largest_difference_of_rounding": rounding.max().item(),
        "mean_effect_of_the_expert": effect.mean().item(),
    }
    write_json(settings.folder / "stock.json", found)
    print(found)
    if not found["mean_difference"] <= MOST_DIFFERENCE:
        raise UserError(f"the stock pipeline's image differs by {found['mean_difference']:.3g}")


def _call(settings: Settings, base: Any, photo: Any) -> dict[str, Any]:
    """Arguments of the stock pipeline for the edit that `regionroute edit --mode plain` made."""
    facts = read_json(settings.edited("plain").with_suffix(".json"))
    call: dict[str, Any] = {
        "image": photo,
        "prompt": facts["prompt"],
        "num_inference_steps": settings.shape.steps,
        "guidance_scale": base.settings.guidance,
        "height": photo.height,
        "width": photo.width,
        "max_sequence_length": settings.shape.text_length,
        "output_type": "pt",
    }
    if base.family.pipeline == "FluxKontextPipeline":
        call |= {"max_area": photo.height * photo.width, "_auto_resize": False}
    return call


def check_keys(transformer: nn.Module, stored: dict[str, torch.Tensor]) -> int:
    """Compares the adapters of a transformer with a LoRA file, key by key.

    Args:
        transformer: with one PEFT adapter.
        stored: the file, by diffusers' names.

    Returns:
        The number of weights.

    Raises:
        UserError: a weight is missing, unexpected or another.
    """
    loaded = {
        name.replace(".default_0", "").replace(".default", ""): weight
        for name, weight in transformer.named_parameters()
        if ".lora_" in name
    }
    wanted = {key.removeprefix("transformer."): weight for key, weight in stored.items()}
    for what, names in (
        ("lacks", wanted.keys() - loaded.keys()),
        ("has, unlike the file,", loaded.keys() - wanted.keys()),
    ):
        if names:
            raise UserError(f"the stock pipeline {what} {sorted(names)[0]} ({len(names)} of them)")
    for name, weight in wanted.items():
        if not torch.allclose(loaded[name].float(), weight.float(), rtol=1e-2, atol=1e-6):
            raise UserError(f"the stock pipeline loaded other values for {name}")
    return len(wanted)


STAGES = {"start": start, "write": write, "load": load, "stock": stock}


if __name__ == "__main__":
    raise SystemExit(main())
