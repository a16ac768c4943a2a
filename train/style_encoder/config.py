"""Typed configuration of the style encoder's training (`train/style_encoder/run.py`)."""

from typing import Annotated, Literal

from pydantic import Field

from regionroute.adapters.style_encoder import RELEASED_LEVELS
from regionroute.config.base import Section


class PicturesConfig(Section):
    """The example images."""

    source: str = Field(
        "data/styles",
        description="folder with one subfolder per style, in which file names identify the "
        "content; or a manifest, whose restyled objects are cropped",
        min_length=1,
    )
    split: str = Field("train", description="split of the manifest, if source is one")
    held_out: float = Field(
        0.1, description="fraction of the contents held out for validation", ge=0, lt=1
    )
    crop: float = Field(
        0.8, description="smallest side of the random crops, relative to the image", gt=0, le=1
    )
    flip: bool = Field(True, description="mirror half of the images, at random")


class TowerConfig(Section):
    """The SigLIP tower: pretrained and frozen, or new and trained."""

    name: str | None = Field(
        None,
        description="folder or hub id of a SigLIP model, such as "
        "google/siglip-so400m-patch14-384, with @REVISION for one revision of it; null: a new one "
        "of the sizes below",
        min_length=1,
    )
    image_size: int = Field(64, description="side of the input in pixels", ge=8)
    patch_size: int = Field(8, description="side of a patch in pixels", ge=2)
    hidden_size: int = Field(96, description="width", ge=8)
    layers: int = Field(4, description="layers", ge=1)
    heads: int = Field(4, description="attention heads", ge=1)


class HeadConfig(Section):
    """The head on the tower's hidden states."""

    levels: tuple[Annotated[int, Field(lt=0)], ...] = Field(
        RELEASED_LEVELS,
        description="hidden states to use, counted from the last (as released)",
        min_length=1,
    )
    tokens: int = Field(8, description="tokens per level", ge=1)
    width: int = Field(128, description="width of each token", ge=1)


class LossConfig(Section):
    """InfoNCE."""

    temperature: float = Field(0.07, description="temperature of the cosine similarities", gt=0)


class EncoderOptimConfig(Section):
    """The optimizer."""

    name: Literal["adabelief", "adamw"] = Field(
        "adabelief", description="AdaBelief (as published) or AdamW"
    )
    lr: float = Field(1e-5, description="learning rate", gt=0)
    weight_decay: float = Field(0.0, description="decoupled weight decay", ge=0)
    clip: float = Field(1.0, description="gradient clipping: maximum norm", gt=0)


class StyleEncoderConfig(Section):
    """Everything `train/style_encoder/run.py` reads."""

    seed: int = Field(0, description="seed of everything random in the run", ge=0, lt=2**32)
    output: str = Field(
        "runs/style_encoder", description="folder for checkpoints and the encoder", min_length=1
    )
    device: str | None = Field(None, description="cpu, cuda, …; null: cuda if available")
    pictures: PicturesConfig = Field(PicturesConfig(), description="the example images")
    tower: TowerConfig = Field(TowerConfig(), description="the SigLIP tower")
    head: HeadConfig = Field(HeadConfig(), description="the head on its hidden states")
    loss: LossConfig = Field(LossConfig(), description="InfoNCE")
    optim: EncoderOptimConfig = Field(EncoderOptimConfig(), description="the optimizer")
    steps: int = Field(3500, description="training steps", ge=1)
    batch: int = Field(128, description="images in each of the two batches of a step", ge=2)
    log_every: int = Field(10, description="steps between log rows", ge=1)
    save_every: int = Field(500, description="steps between checkpoints", ge=1)
    validate_every: int = Field(500, description="steps between validations", ge=1)
    resume: bool = Field(True, description="resume from the checkpoint in the output folder")
