"""Settings of `train/pretrain/train_word_attention.py`."""

from pydantic import Field

from regionroute.config.base import Section
from train.pretrain.config import PhotoPairsConfig
from train.pretrain.image_encoder.config import CompositionsConfig


class WordAttentionConfig(Section):
    """Everything `train/pretrain/train_word_attention.py` reads."""

    seed: int = Field(0, description="seed of images and order", ge=0, lt=2**32)
    output: str = Field("runs/word_attention", description="folder for checkpoints and the base")
    threads: int | None = Field(None, description="CPU threads; null: torch's default", ge=1)
    base: str = Field("nano-photos", description="base with a word-aligned image encoder")
    image_encoder: str | None = Field(
        None,
        description="file from train/pretrain/train_image_encoder.py with from_base=true, which "
        "takes the place of the base's; null: the base's own",
    )
    compositions: CompositionsConfig = CompositionsConfig(
        count=4096,
        photos=PhotoPairsConfig(
            layouts={"photo": 0.5, "halves": 0.25, "mosaic": 0.25},
            pasted=(0.3, 0.33, 0.25, 0.12),
            least_scale=0.75,
            word_balance=0.6,
        ),
        other_colours=0.4,
    )
    heads: tuple[int, ...] = Field(
        (0, 2, 4, 5),
        description="heads of the first block that attend to the object's word; choose those "
        "whose removal changes the velocity least",
        min_length=1,
    )
    sharpness: float = Field(
        0.6,
        description="of the first maps: change of their logarithm per unit of the image encoder's "
        "score",
        gt=0,
    )
    text_share: float = Field(
        0.06,
        description="factor on what the T5 layers add to the word vectors, which they otherwise "
        "drown; 1 for a base that this was done to",
        gt=0,
        le=1,
    )
    focus: float = Field(0.3, description="weight of Focus", ge=0)
    cover: float = Field(1.0, description="weight of Cover", ge=0)
    probability: float = Field(
        0.5,
        description="weight of the cross-entropy of attention and mask, 0 everywhere for absent "
        "words",
        ge=0,
    )
    keep: float = Field(
        1.0,
        description="weight of the distance of the text states from those of the base, relative "
        "to their variance",
        ge=0,
    )
    absent: float = Field(0.25, description="fraction of absent words", ge=0, le=1)
    farthest: float = Field(
        0.55, description="largest cosine of an absent word's vector with a present one's"
    )
    steps: int = Field(3200, description="training steps", ge=1)
    batch: int = Field(24, description="images per step", ge=1)
    lr: float = Field(4e-3, description="peak learning rate of the heads, cosine decay", gt=0)
    text_lr: float = Field(1e-3, description="that of the text layers", gt=0)
    warmup: int = Field(50, description="linear warm-up steps", ge=0)
    clip: float = Field(1.0, description="gradient-norm clip", gt=0)
    log_every: int = Field(25, description="steps between log rows", ge=1)
    save_every: int = Field(200, description="steps between checkpoints", ge=1)
    validate_every: int = Field(200, description="steps between validations", ge=1)
