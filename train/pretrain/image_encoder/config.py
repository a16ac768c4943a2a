"""Settings of an image encoder's training (`train/pretrain/train_image_encoder.py`)."""

from typing import Annotated

from pydantic import Field

from regionroute.config.base import Section

Count = Annotated[int, Field(ge=1)]
Block = Annotated[int, Field(ge=0, le=15)]


class TeacherConfig(Section):
    """The network to distil."""

    weights: str = Field(
        "data/weights/efficientnet_lite0.safetensors",
        description="weights of EfficientNet-Lite0 (see train/pretrain/image_encoder/teacher.py)",
    )
    blocks: tuple[Block, ...] = Field(
        (10, 15), description="blocks, 0 to 15, whose features are learned", min_length=1
    )
    zoom: float = Field(
        2.0, description="scale of the teacher's input: it was trained at 224 px", gt=0
    )


class ViewsConfig(Section):
    """The training data: square crops of the bank's training photos, made once."""

    bank: str = Field("data/bank", description="folder of `regionroute bank`")
    side: int = Field(128, description="side of a square in pixels", ge=16, multiple_of=16)
    crops: int = Field(
        4, description="random crops per photo, in addition to the whole photo", ge=0
    )
    crop_area: tuple[float, float] = Field(
        (0.3, 0.9), description="range of the fraction of the photo in a crop"
    )
    mixed: float = Field(
        0.5, description="fraction of crops that get CutMix with another one", ge=0, le=1
    )


class NetworkConfig(Section):
    """Sizes of the network."""

    widths: tuple[Count, Count, Count, Count] = Field(
        (40, 80, 216, 336), description="channels at 1/2, 1/4, 1/8 and 1/16 of the image size"
    )
    depths: tuple[Count, Count, Count, Count] = Field(
        (2, 7, 6, 2), description="residual blocks at 1/4, 1/8, 1/16, and at 1/8 again"
    )
    semantic_channels: int = Field(
        12, description="latent channels for the features; a token has 4 times as many", ge=1
    )
    scale: float = Field(
        2.0,
        description="root mean square of the features; above 1, so that they stand out from the "
        "unit noise of a noisy image in these channels",
        gt=0,
    )


class ImageEncoderConfig(Section):
    """Everything `train/pretrain/train_image_encoder.py` reads."""

    seed: int = Field(0, description="seed of initialisation, crops and order", ge=0, lt=2**32)
    output: str = Field("runs/image_encoder", description="folder for checkpoints and the result")
    threads: int | None = Field(None, description="CPU threads; null: torch's default", ge=1)
    teacher: TeacherConfig = TeacherConfig()
    views: ViewsConfig = ViewsConfig()
    network: NetworkConfig = NetworkConfig()
    steps: int = Field(2000, description="training steps", ge=1)
    batch: int = Field(16, description="crops per step", ge=2)
    lr: float = Field(2e-3, description="peak learning rate, with cosine decay", gt=0)
    warmup: int = Field(100, description="linear warm-up steps", ge=0)
    weight_decay: float = Field(0.05, description="AdamW weight decay of the convolutions", ge=0)
    average: float = Field(
        0.995,
        description="decay of the moving average of the weights, which is what is saved",
        ge=0,
        lt=1,
    )
    clip: float = Field(5.0, description="gradient-norm clip", gt=0)
    log_every: int = Field(25, description="steps between log rows", ge=1)
    save_every: int = Field(100, description="steps between checkpoints", ge=1)
    validate_every: int = Field(250, description="steps between validations", ge=1)
