"""Settings of an image encoder's training (`train/pretrain/train_image_encoder.py`)."""

from pydantic import Field

from regionroute.config.base import Section
from train.pretrain.config import PhotoPairsConfig, Share


class CompositionsConfig(Section):
    """The training images: composed from the bank's training photos and encoded once."""

    bank: str = Field("data/bank", description="folder of `regionroute bank`")
    side: int = Field(
        128, description="side of an image in pixels, as the base sees it", ge=32, multiple_of=16
    )
    detail: int = Field(
        2,
        description="images are composed at this many times the side, for the image encoder; the "
        "bank needs squares of as many pixels or more",
        ge=1,
    )
    blurred: Share = Field(
        0.3,
        description="fraction of images with the detail of a random side from `side` up, as small "
        "photos have",
        le=1,
    )
    count: int = Field(6000, description="images to train on", ge=1)
    held_out: int = Field(256, description="images of the bank's test photos to validate on", ge=1)
    photos: PhotoPairsConfig = Field(
        PhotoPairsConfig(
            layouts={"photo": 0.6, "halves": 0.2, "mosaic": 0.2},
            pasted=(0.34, 0.33, 0.23, 0.1),
            least_scale=0.8,
            word_balance=0.6,
        ),
        description="how images are composed (tasks and twins are not used)",
    )
    other_colours: Share = Field(0.5, description="fraction of images in changed colours", le=1)


class NetworkConfig(Section):
    """Sizes of the head; not used with `from_base`."""

    semantic_channels: int = Field(
        24,
        description="latent channels for the features; a token has 4 times as many, the last is "
        "the objectness",
        ge=1,
    )
    width: int = Field(64, description="channels inside the head", ge=8)
    zoom: int = Field(
        3, description="size at which the backbone sees a photo, in multiples of the base's", ge=1
    )


class ImageEncoderConfig(Section):
    """Everything `train/pretrain/train_image_encoder.py` reads."""

    seed: int = Field(0, description="seed of initialisation, images and order", ge=0, lt=2**32)
    output: str = Field("runs/image_encoder", description="folder for checkpoints and the result")
    threads: int | None = Field(None, description="CPU threads; null: torch's default", ge=1)
    base: str = Field(
        "nano-photos", description="base whose word vectors the features are aligned with"
    )
    from_base: bool = Field(
        False,
        description="start from the base's own image encoder, whose channels keep their scale, so "
        "that the base can read the result",
    )
    compositions: CompositionsConfig = CompositionsConfig()
    network: NetworkConfig = NetworkConfig()
    steps: int = Field(1200, description="training steps", ge=1)
    batch: int = Field(16, description="images per step", ge=1)
    negatives: int = Field(12, description="absent words per image", ge=1)
    farthest: float = Field(
        0.55,
        description="largest cosine of an absent word's vector with a present one's: closer words "
        "may name the same thing",
    )
    jitter: float = Field(
        1.3,
        description="largest length of the random vector that is added to a word's unit vector, so "
        "that words near those of the images are found as well; 0: none",
        ge=0,
    )
    lr: float = Field(2e-3, description="peak learning rate, with cosine decay", gt=0)
    slow: float = Field(
        0.1, description="factor on the rate of the word map and the zero-shot part", gt=0
    )
    warmup: int = Field(50, description="linear warm-up steps", ge=0)
    weight_decay: float = Field(0.02, description="AdamW weight decay", ge=0)
    clip: float = Field(5.0, description="gradient-norm clip", gt=0)
    log_every: int = Field(25, description="steps between log rows", ge=1)
    save_every: int = Field(200, description="steps between checkpoints", ge=1)
    validate_every: int = Field(300, description="steps between validations", ge=1)
