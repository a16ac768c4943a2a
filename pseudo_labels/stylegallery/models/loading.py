"""Loads a diffusion model: Stable Diffusion, or a base of regionroute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pseudo_labels.stylegallery.config import FlowConfig
from pseudo_labels.stylegallery.models.base import RANDOM, GalleryModel
from pseudo_labels.stylegallery.models.stable_diffusion import StableDiffusion, random_model
from regionroute.diffusion.families import EXAMPLES, PIPELINES
from regionroute.errors import UserError, first_line
from regionroute.files import file_hash, is_hub_id, settings_hash
from regionroute.hub_names import hub_arguments, hub_commit, split_revision, used_name
from regionroute.models.embedded import NAMES, nano_folder
from regionroute.pretrained import check_complete, load_errors

if TYPE_CHECKING:
    from pseudo_labels.stylegallery.models.flow import FlowModel

_INDEX = "model_index.json"
DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
_PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: torch.device | None = None,
    offload: bool = False,
    lora: str | None = None,
    flow: FlowConfig | None = None,
) -> GalleryModel:
    """Load a model.

    Args:
        name: folder in diffusers' layout, hub id (also ``owner/name@revision``), name of an
            embedded base, or "random" for a small random Stable Diffusion.
        dtype: dtype of the network: float32, bfloat16 or float16.
        device: where it runs, None for the CPU.
        offload: keep idle parts in CPU memory.
        lora: file of a few-step LoRA (LCM-LoRA, Hyper-SD), merged into the UNet.
        flow: settings of diffusion transformers.

    Raises:
        UserError: it is missing, damaged, or of no known family.
    """
    device = device or torch.device("cpu")
    if name == RANDOM:
        return random_model(device=device)
    if _pipeline(name) in PIPELINES:
        if lora is not None:
            raise UserError("--lora goes with Stable Diffusion")
        return _load_flow(name, dtype, device, offload, flow or FlowConfig())
    return _load_stable_diffusion(name, dtype, device, offload, lora)


def _pipeline(name: str) -> object:
    """Class of a model's pipeline; None where its index cannot be read, which is reported later."""
    from huggingface_hub import hf_hub_download

    if name in NAMES:
        return PIPELINES[0]
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            path = path / _INDEX
        elif not path.exists() and is_hub_id(split_revision(name)[0]):
            source, revision = split_revision(name)
            path = Path(hf_hub_download(source, _INDEX, revision=revision))
        return json.loads(path.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_flow(
    name: str, dtype: str, device: torch.device, offload: bool, config: FlowConfig
) -> FlowModel:
    from pseudo_labels.stylegallery.models.flow import FlowModel
    from regionroute.models.loading import load_base

    facts = settings_hash([source_hash(name), dtype, config])
    return FlowModel(load_base(name, getattr(torch, dtype)), config, facts, device, offload)


def _load_stable_diffusion(
    name: str, dtype: str, device: torch.device, offload: bool, lora: str | None
) -> StableDiffusion:
    parts, alphas, offset, used = _read_parts(name, getattr(torch, dtype))
    if lora is not None:
        _merge_lora(parts["unet"], lora)
    identity = [source_hash(name), dtype, source_hash(lora) if lora else None]
    return StableDiffusion(
        parts["unet"],
        parts["vae"],
        _empty_prompt(parts["tokenizer"], parts["text_encoder"]),
        alphas,
        offset,
        settings_hash(identity),
        device,
        offload,
        name=used,
    )


def source_hash(name: str) -> str:
    """Changes with the files of a folder or embedded base; for a hub id, with the id only."""
    path = nano_folder(name) if name in NAMES else Path(name).expanduser()
    if path.is_file():
        return file_hash(path)
    files = sorted(f for f in path.rglob("*") if f.suffix in (".safetensors", ".json"))
    if not path.is_dir() or not files:
        return name
    # Sizes and times instead of contents: hashing gigabytes at every start would take minutes.
    facts = [
        [f.relative_to(path).as_posix(), f.stat().st_size, f.stat().st_mtime_ns] for f in files
    ]
    return settings_hash(facts)


def _read_parts(name: str, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor, int, str]:
    """Parts, ᾱ, first timestep, and the name with the commit of all of them."""
    import diffusers
    import transformers

    _check_source(name)
    parts: dict[str, Any] = {}
    with load_errors(f"--model {name}", name, "a Stable Diffusion"):
        used = used_name(name, hub_commit(name, _INDEX))
        source, where = hub_arguments(used)
        scheduler = diffusers.DDIMScheduler.from_pretrained(source, subfolder="scheduler", **where)
        for part, kind in _PARTS.items():
            library = diffusers if hasattr(diffusers, kind) else transformers
            options = {"subfolder": part, **where}
            if part in ("unet", "vae"):
                options |= {"use_safetensors": True, "variant": _variant(name, part)}
                options["dtype"] = dtype if part == "unet" else torch.float32
            if part == "tokenizer":
                parts[part] = getattr(library, kind).from_pretrained(source, **options)
                continue
            parts[part], report = getattr(library, kind).from_pretrained(
                source, output_loading_info=True, **options
            )
            check_complete(f"--model {name}, {part}", report)
    _check_family(name, parts, scheduler)
    alphas = scheduler.alphas_cumprod.double()
    return parts, alphas, int(scheduler.config.get("steps_offset", 0)), used


def _check_source(name: str) -> None:
    """Refuse what is neither a hub id nor the folder of a known family."""
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.exists() or not is_hub_id(split_revision(name)[0]):
            raise UserError(
                f"--model {name}: no such folder; give one of Stable Diffusion 1.5 or of a "
                f"{' or '.join(PIPELINES)}, a hub id such as {DEFAULT} or {EXAMPLES[0]}, or "
                f"{' or '.join(NAMES)}"
            )
        return
    index = path / _INDEX
    if not index.is_file():
        raise UserError(f"--model {name}: no model_index.json here, copy the whole folder")
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: this file is damaged, copy it again") from error
    if kind not in _PIPELINES:
        raise UserError(
            f"--model {name}: this is a {kind}; StyleGallery reads Stable Diffusion 1.x and 2.x, "
            f"{' and '.join(PIPELINES)}"
        )
    vocabulary = [path / "tokenizer" / file for file in ("tokenizer.json", "vocab.json")]
    if not any(file.is_file() for file in vocabulary):  # transformers would create one
        raise UserError(f"--model {name}: its tokenizer is missing, copy the whole folder")


def _check_family(name: str, parts: dict[str, Any], scheduler: Any) -> None:
    unet, vae = parts["unet"].config, parts["vae"].config
    problem = None
    if unet.in_channels != vae.latent_channels:
        problem = f"its UNet takes {unet.in_channels} channels, its VAE has {vae.latent_channels}"
    elif unet.addition_embed_type is not None:
        problem = "its UNet needs more than text (Stable Diffusion XL)"
    elif scheduler.config.prediction_type != "epsilon":
        problem = f"it predicts {scheduler.config.prediction_type}, not noise"
    if problem:
        raise UserError(f"--model {name}: {problem}; give a folder of Stable Diffusion 1.5")


def _variant(name: str, part: str) -> str | None:
    """The variant "fp16" if a folder holds no other weights."""
    folder = Path(name).expanduser() / part
    plain = any(folder.glob("diffusion_pytorch_model*.safetensors"))
    half = any(folder.glob("diffusion_pytorch_model*fp16*.safetensors"))
    full = plain and any(
        "fp16" not in file.name for file in folder.glob("diffusion_pytorch_model*.safetensors")
    )
    return "fp16" if half and not full else None


@torch.no_grad()
def _empty_prompt(tokenizer: Any, encoder: Any) -> Tensor:
    length = encoder.config.max_position_embeddings
    tokens = tokenizer(
        "", padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    embedding: Tensor = encoder(tokens.input_ids)[0].float()
    return embedding


def _merge_lora(unet: Any, lora: str) -> None:
    from diffusers import StableDiffusionPipeline

    path = Path(lora).expanduser()
    if not path.is_file():
        raise UserError(f"--lora {lora}: no such file, check the path")
    try:
        state, alphas = StableDiffusionPipeline.lora_state_dict(
            str(path.parent), weight_name=path.name, local_files_only=True, unet_config=unet.config
        )
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, adapter_name="fast")
        unet.fuse_lora()
        unet.unload_lora()
    # safetensors, peft and diffusers each have their own.
    except Exception as error:
        raise UserError(
            f"--lora {lora}: this LoRA does not fit the model ({first_line(error)})"
        ) from error
