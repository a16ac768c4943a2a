"""The frozen diffusion model: any Stable Diffusion 1.x or 2.x folder that predicts noise.

With `offload`, parts are on the GPU only while they run: 512 px in bfloat16 then fits in 8 GB.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pseudo_labels.stylegallery.random_model import RANDOM_WIDTHS, random_parts
from regionroute.errors import UserError
from regionroute.files import file_hash, is_hub_id, settings_hash
from regionroute.hub_names import hub_arguments, hub_commit, split_revision, used_name

DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
RANDOM = "random"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
_PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}


@dataclass
class DiffusionModel:
    """Frozen parts of a Stable Diffusion model.

    Attributes:
        unet: predicts noise.
        vae: images to latents and back, always in float32.
        text: the empty prompt's embedding [1, L, D].
        alphas: ᾱ of all training timesteps, [1000] in float64.
        offset: the scheduler's first timestep.
        fingerprint: changes with the weights.
        device: where they run.
        offload: move parts back to CPU memory when they are idle.
        random: whether the weights are random, for dry runs.
        name: folder or hub id, with the commit that was loaded.
    """

    unet: Any
    vae: Any
    text: Tensor
    alphas: Tensor
    offset: int
    fingerprint: str
    device: torch.device
    offload: bool = False
    random: bool = False
    name: str = RANDOM

    def __post_init__(self) -> None:
        for part in (self.unet, self.vae):
            part.eval().requires_grad_(False)
            if not self.offload:
                part.to(self.device)
        self.text = self.text.to(self.device)

    @contextlib.contextmanager
    def at_work(self, part: Any) -> Iterator[Any]:
        """Move a part to the device for the duration of the block."""
        part.to(self.device)
        try:
            yield part
        finally:
            if self.offload:
                part.to("cpu")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    @property
    def factor(self) -> int:
        """Side of a latent cell in pixels."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Mode of the latents [1, c, h, w], in float32, of an image [3, H, W] in [0, 1]."""
        with self.at_work(self.vae) as vae:
            found = vae.encode(image[None].to(self.device) * 2 - 1).latent_dist.mode()
        latents: Tensor = found.float() * vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The image [3, H, W] in [0, 1] of latents [1, c, h, w]."""
        with self.at_work(self.vae) as vae:
            found = vae.decode(latents.float() / vae.config.scaling_factor).sample[0]
        image: Tensor = (found / 2 + 0.5).clamp(0, 1).float().cpu()
        return image


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: torch.device | None = None,
    offload: bool = False,
    lora: str | None = None,
) -> DiffusionModel:
    """Load a model.

    Args:
        name: folder in diffusers' layout, hub id (also ``owner/name@revision``), or "random" for a
            small random one.
        dtype: dtype of the UNet: float32, bfloat16 or float16.
        device: where it runs, None for the CPU.
        offload: keep idle parts in CPU memory.
        lora: file of a few-step LoRA (LCM-LoRA, Hyper-SD), merged into the UNet.

    Raises:
        UserError: it is missing, damaged, or of another family.
    """
    device = device or torch.device("cpu")
    if name == RANDOM:
        return random_model(device=device)
    parts, alphas, offset, used = _read_parts(name, DTYPES[dtype])
    if lora is not None:
        _merge_lora(parts["unet"], lora)
    identity = [source_hash(name), dtype, source_hash(lora) if lora else None]
    return DiffusionModel(
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


def random_model(
    seed: int = 0, device: torch.device | None = None, widths: tuple[int, ...] = RANDOM_WIDTHS
) -> DiffusionModel:
    """A model with as many layers as Stable Diffusion 1.5, but narrow ones and random weights.

    Args:
        seed: seed of the weights.
        device: where the model runs, None for the CPU.
        widths: channels of the UNet's four stages.

    Returns:
        The model, with `random` set.
    """
    parts = random_parts(seed, widths)
    return DiffusionModel(
        parts.unet,
        parts.vae,
        parts.text,
        parts.scheduler.alphas_cumprod.double(),
        parts.scheduler.config.steps_offset,
        settings_hash(["random", seed, widths]),
        device or torch.device("cpu"),
        random=True,
    )


def source_hash(name: str) -> str:
    """Changes with the files of a folder; for a hub id, with the id only."""
    path = Path(name).expanduser()
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
    from safetensors import SafetensorError

    from regionroute.models.loading import quiet

    local = _check_source(name)
    parts: dict[str, Any] = {}
    try:
        with quiet() if local else contextlib.nullcontext():
            used = used_name(name, hub_commit(name, "model_index.json"))
            source, where = hub_arguments(used)
            scheduler = diffusers.DDIMScheduler.from_pretrained(
                source, subfolder="scheduler", **where
            )
            for part, kind in _PARTS.items():
                library = diffusers if hasattr(diffusers, kind) else transformers
                options = dict(where)
                if part in ("unet", "vae"):
                    options |= {"use_safetensors": True, "variant": _variant(name, part)}
                    options["dtype"] = dtype if part == "unet" else torch.float32
                if part != "tokenizer":
                    options["output_loading_info"] = True
                found = getattr(library, kind).from_pretrained(source, subfolder=part, **options)
                parts[part] = found if part == "tokenizer" else _complete(name, part, *found)
    # What the libraries raise for files that are missing, damaged or of another kind.
    except UserError:
        raise
    except (
        OSError, SafetensorError, ValueError, RuntimeError, LookupError, TypeError, AttributeError
    ) as error:  # fmt: skip
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        problem = (
            "a part of this Stable Diffusion folder is missing or damaged, copy it again"
            if local
            else "the hub cannot be reached or has no such model: download it and give its folder"
        )
        raise UserError(f"--model {name}: {problem} ({reason})") from error
    _check_family(name, parts, scheduler)
    alphas = scheduler.alphas_cumprod.double()
    return parts, alphas, int(scheduler.config.get("steps_offset", 0)), used


def _complete(name: str, part: str, network: Any, report: dict[str, Any]) -> Any:
    """Refuse a network with missing weights: the libraries fill them with random numbers."""
    if report["missing_keys"]:
        first = min(report["missing_keys"])
        raise UserError(f"--model {name}: the weights of {part} lack {first}; copy them again")
    return network


def _check_source(name: str) -> bool:
    """Whether a name is a local folder, whose index names the right family."""
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.exists() or not is_hub_id(split_revision(name)[0]):
            raise UserError(
                f"--model {name}: no such folder; give a folder of Stable Diffusion 1.5, or a hub "
                f"id such as {DEFAULT}"
            )
        return False
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(f"--model {name}: no model_index.json here, copy the whole folder")
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: this file is damaged, copy it again") from error
    if kind not in _PIPELINES:
        raise UserError(
            f"--model {name}: this is a {kind}; StyleGallery needs the attention of Stable "
            "Diffusion 1.5, give its folder"
        )
    vocabulary = [path / "tokenizer" / file for file in ("tokenizer.json", "vocab.json")]
    if not any(file.is_file() for file in vocabulary):  # transformers would create one
        raise UserError(f"--model {name}: its tokenizer is missing, copy the whole folder")
    return True


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
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"--lora {lora}: this LoRA does not fit the model ({reason})") from error
