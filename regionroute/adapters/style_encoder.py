"""The style of an image as a vector: a SigLIP tower read at three depths (StyleExpert spec §2).

Shape legend: B images, H W pixels, N tokens of the tower, D its width, L levels, n tokens kept
of each level, d values kept of each token, Ds = L·n·d the style embedding.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from regionroute.adapters.files.lora_file import check_state, write_tensors
from regionroute.data.images import resize
from regionroute.errors import UserError
from regionroute.files import atomic_write, file_hash, is_hub_id, read_json, write_json
from regionroute.hub_names import split_revision
from regionroute.pretrained import load_pretrained

FOLDER = "style_encoder"  # of experts that are chosen by example, and of a base
SETTINGS_FILE = "style_encoder.json"
HEAD_FILE = "head.safetensors"
TOWER_FOLDER, TOWER_FILES = "tower", ("model.safetensors", "config.json")
RELEASED_LEVELS = (-2, -11, -20)


class EncoderSettings(BaseModel):
    """``style_encoder.json``.

    Attributes:
        version: of the file's form.
        tower: folder or hub id of the frozen SigLIP model; None: trained along, in ``tower/``.
        levels: which hidden states are read, counted from the last.
        tokens: n.
        width: d.
        mean, std: with which the tower wants its images normalised.
        styles: names of the styles it was trained to tell apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: Literal[1] = Field(1, validation_alias="schema", serialization_alias="schema")
    tower: str | None = None
    levels: tuple[Annotated[int, Field(lt=0)], ...] = Field(RELEASED_LEVELS, min_length=1)
    tokens: int = Field(8, ge=1)
    width: int = Field(128, ge=1)
    mean: float = 0.5
    std: float = Field(0.5, gt=0)
    styles: tuple[str, ...] = ()


class LevelHead(nn.Module):
    """One level's reduction: of its N tokens to n, then of their D values to d.

    The published code reduces each level by itself and lays the results side by side; the paper
    speaks of one perceptron over all levels.

    Args:
        tokens_in: N.
        width_in: D.
        tokens: n.
        width: d.
    """

    def __init__(self, tokens_in: int, width_in: int, tokens: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(tokens_in, tokens)
        self.norm = nn.LayerNorm(width_in)
        self.project = nn.Linear(width_in, width)

    def forward(self, states: Tensor) -> Tensor:
        """[B,N,D] to [B,n,d]."""
        kept = nn.functional.silu(self.reduce(states.transpose(1, 2))).transpose(1, 2)
        projected: Tensor = self.project(self.norm(kept))
        return projected


class StyleEncoder(nn.Module):
    """Images to style embeddings.

    Args:
        tower: any `SiglipVisionModel`. Frozen if the settings name where it comes from.
        settings: see `EncoderSettings`.

    Raises:
        UserError: a level that the tower does not have.
    """

    def __init__(self, tower: SiglipVisionModel, settings: EncoderSettings) -> None:
        super().__init__()
        config = tower.config
        states = config.num_hidden_layers + 1  # the embeddings come first
        for level in settings.levels:
            if level < -states:
                raise UserError(
                    f"levels: {level} is not there, the tower has {states} hidden states"
                )
        self.tower, self.settings = tower, settings
        if settings.tower is not None:
            tower.requires_grad_(False)
        tokens = (config.image_size // config.patch_size) ** 2
        self.heads = nn.ModuleList(
            LevelHead(tokens, config.hidden_size, settings.tokens, settings.width)
            for _ in settings.levels
        )

    @property
    def image_size(self) -> int:
        """Side of the square at which the tower sees images."""
        return int(self.tower.config.image_size)

    @property
    def style_dim(self) -> int:
        """Ds."""
        return len(self.settings.levels) * self.settings.tokens * self.settings.width

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> StyleEncoder:
        """As of any module, but a frozen tower stays as it is."""
        super().train(mode)
        if self.settings.tower is not None:
            self.tower.eval()
        return self

    def prepare(self, image: Tensor) -> Tensor:
        """An image [3,H,W] or images [B,3,H,W] in [0,1] as the tower sees them, still in [0,1].

        As SigLIP's own preparation it neither crops nor keeps the aspect: [B,3,S,S].
        """
        images = image[None] if image.ndim == 3 else image
        return resize(images.float(), (self.image_size, self.image_size))

    def forward(self, images: Tensor) -> Tensor:
        """Style embeddings.

        Args:
            images: [B,3,S,S] in [0,1], from `prepare`.

        Returns:
            [B,Ds] fp32, with the graph of the head (and of the tower if it is not frozen).
        """
        tower, frozen = self.tower, self.settings.tower is not None
        pixels = (images - self.settings.mean) / self.settings.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            states = tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states
        levels = [
            head(states[level].float())
            for head, level in zip(self.heads, self.settings.levels, strict=True)
        ]
        return torch.cat(levels, dim=1).flatten(1)

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """The style of one image [3,H,W] in [0,1]: [Ds] fp32 on the encoder's device."""
        embedding: Tensor = self(self.prepare(image.to(self.device)))
        return embedding[0]


def new_tower(image_size: int, patch_size: int, width: int, layers: int, heads: int) -> Any:
    """A SigLIP tower with random weights, to be trained along with the head.

    Raises:
        UserError: sizes that do not fit each other.
    """
    if image_size % patch_size:
        raise UserError(f"tower: image_size {image_size} is no multiple of patch_size {patch_size}")
    if width % heads:
        raise UserError(f"tower: width {width} is no multiple of heads {heads}")
    config = SiglipVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, image_size=image_size, patch_size=patch_size,
        vision_use_head=False,
    )  # fmt: skip
    return SiglipVisionModel(config)


def load_tower(source: str) -> Any:
    """Load the image encoder of a SigLIP model from a folder or the hub, in float32.

    Args:
        source: folder or hub id, also ``owner/name@revision``.

    Raises:
        UserError: it is missing, cannot be reached, is not a SigLIP model, or lacks weights.
    """
    if not Path(source).is_dir() and not is_hub_id(split_revision(source)[0]):
        raise UserError(
            f"style encoder tower {source}: no such folder, give one of a SigLIP model or a hub id "
            "such as google/siglip-so400m-patch14-384"
        )
    tower = load_pretrained(
        f"style encoder tower {source}", source, "a SigLIP model", SiglipVisionModel,
        dtype=torch.float32,
    )[0]  # fmt: skip
    return tower.eval()


def save_style_encoder(folder: str | PathLike[str], encoder: StyleEncoder) -> None:
    """Writes an encoder; the settings last, so that a half-written one is none."""
    folder = Path(folder)
    if encoder.settings.tower is None:
        tower = {name: x.detach().cpu() for name, x in encoder.tower.state_dict().items()}
        write_tensors(folder / TOWER_FOLDER / "model.safetensors", tower, {})
        write_json(folder / TOWER_FOLDER / "config.json", encoder.tower.config.to_diff_dict())
    write_tensors(folder / HEAD_FILE, _head_state(encoder), {})
    write_json(folder / SETTINGS_FILE, encoder.settings.model_dump(by_alias=True))


def load_style_encoder(
    folder: str | PathLike[str], device: str | torch.device = "cpu"
) -> StyleEncoder:
    """Reads what `save_style_encoder` wrote; everything is frozen.

    Raises:
        UserError: no encoder there, a damaged one, or a tower that cannot be loaded.
    """
    folder = Path(folder)
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no {SETTINGS_FILE} here, give a folder made by train/style_encoder/run.py"
        )
    try:
        settings = EncoderSettings.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}, fix or train it again") from error
    tower = load_tower(settings.tower or str(folder / TOWER_FOLDER))
    encoder = StyleEncoder(tower, settings)
    _load_head(encoder, folder / HEAD_FILE)
    return encoder.requires_grad_(False).eval().to(device)


def copy_style_encoder(source: str | PathLike[str], folder: str | PathLike[str]) -> None:
    """Copies what `save_style_encoder` wrote; the settings last.

    Raises:
        UserError: no encoder there.
    """
    source, folder = Path(source), Path(folder)
    if not (source / SETTINGS_FILE).is_file():
        raise UserError(f"{source}: no {SETTINGS_FILE} here any more, put the folder back")
    files = [HEAD_FILE, *(f"{TOWER_FOLDER}/{name}" for name in TOWER_FILES), SETTINGS_FILE]
    for name in files:
        if (source / name).is_file():
            with atomic_write(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)


def encoder_identity(folder: str | PathLike[str]) -> str:
    """Hash of an encoder's settings and own weights: embeddings of different ones do not mix."""
    files = [Path(folder) / name for name in (SETTINGS_FILE, HEAD_FILE)]
    files += sorted((Path(folder) / TOWER_FOLDER).glob("*.safetensors"))
    return "-".join(file_hash(file)[:8] for file in files if file.is_file())


def _head_state(encoder: StyleEncoder) -> dict[str, Tensor]:
    return {name: x.detach().cpu() for name, x in encoder.heads.state_dict().items()}


def _load_head(encoder: StyleEncoder, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: this file is missing, copy the whole folder")
    try:
        state: Mapping[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: this file is damaged, copy it again ({error})") from error
    check_state(
        state, {n: tuple(x.shape) for n, x in encoder.heads.state_dict().items()}, str(path)
    )
    encoder.heads.load_state_dict(state)
