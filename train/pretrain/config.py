"""Typed configuration of the embedded base's pre-training (`train/pretrain/run.py`)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from regionroute.config.base import Section
from regionroute.config.losses import PerceptualConfig
from regionroute.config.sites import Queries

Share = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[float, Field(gt=0, le=1)]
Width = Annotated[int, Field(ge=2, multiple_of=2)]


Layout = Literal["photo", "halves", "mosaic"]
PhotoTask = Literal["copy", "style", "tint", "recolour", "highlight", "absent"]


class PhotoPairsConfig(Section):
    """How pairs are composed from a bank of photos."""

    tasks: dict[PhotoTask, Share] = Field(
        {
            "copy": 0.04,
            "style": 0.32,
            "tint": 0.04,
            "recolour": 0.2,
            "highlight": 0.35,
            "absent": 0.05,
        },
        description="fraction of each task; highlight: the object white on black; absent: the "
        "named object is not in the image, which stays as it is",
    )
    layouts: dict[Layout, Share] = Field(
        {"photo": 1.0},
        description="fraction of images that show one photo, two halves of photos, or a mosaic of "
        "four",
    )
    pasted: tuple[Share, ...] = Field(
        (0.45, 0.35, 0.2),
        description="of the images of one photo, fractions with 0, 1, 2, … pasted objects of "
        "other photos",
        min_length=1,
    )
    pasted_size: tuple[Size, Size] = Field(
        (0.3, 0.85),
        description="range of the longer side of a pasted object, relative to the image",
    )
    least_scale: Size = Field(
        1.0,
        description="smallest scale of a photo before it is cropped, as long as it still fills "
        "the image; 1: crop only",
    )
    least_area: float = Field(
        0.01,
        description="smallest fraction of the image that an object must cover to be named",
        gt=0,
        lt=1,
    )
    twins: float = Field(
        0.7,
        description="fraction of named objects followed by the same image with another object word",
        ge=0,
        le=1,
    )
    other_colours: Share = Field(
        0.0, description="fraction of highlight images with changed colours", le=1
    )
    word_balance: float = Field(
        0.5, description="sampling: 0 draws every photo equally often, 1 every word", ge=0, le=1
    )

    @model_validator(mode="after")
    def _draws_something(self) -> "PhotoPairsConfig":
        for name, shares in (
            ("tasks", self.tasks.values()),
            ("layouts", self.layouts.values()),
            ("pasted", self.pasted),
        ):
            if not sum(shares) > 0:
                raise ValueError(f"give {name} at least one share above 0")
        if self.pasted_size[0] > self.pasted_size[1]:
            raise ValueError("have a pasted_size that rises")
        return self


class CorpusConfig(Section):
    """Where the pre-training pairs come from: scenes drawn beforehand, or a bank of photos."""

    manifest: str = Field(
        "data/corpus/manifest.jsonl",
        description="corpus manifest, from `regionroute scenes --pretrain`",
    )
    bank: str | None = Field(
        None,
        description="folder of an object bank (`regionroute bank`), used instead of the manifest",
    )
    photos: PhotoPairsConfig = Field(
        PhotoPairsConfig(), description="how pairs are composed from the object bank"
    )
    workers: int = Field(1, description="processes that compose pairs from the object bank", ge=0)
    resolution: int = Field(
        64, description="side of the images in pixels, a multiple of 16", ge=32, multiple_of=16
    )
    held_out: int = Field(
        256, description="number of scenes, the last of the corpus, held out for validation", ge=1
    )


class CodecConfig(Section):
    """The patch codec, fitted in closed form."""

    renamed: ClassVar = {"vision": "image_encoder"}

    latent_channels: int = Field(
        24,
        description="latent channels that encode pixels; a token packs 2x2 of them and so has 4 "
        "times as many, out of its 192 pixel values",
        ge=1,
        le=48,
    )
    image_encoder: str | None = Field(
        None,
        description="file of an image encoder from train/pretrain/train_image_encoder.py, whose "
        "features become further latent channels; null: none, or that of init_from",
    )
    pictures: int = Field(
        12000, description="images of the corpus that the codec is fitted to", ge=1
    )


class ModelConfig(Section):
    """Sizes of the transformer and of the two text encoders."""

    num_layers: int = Field(3, description="double-stream blocks", ge=1)
    num_single_layers: int = Field(2, description="single-stream blocks", ge=1)
    num_attention_heads: int = Field(6, description="heads", ge=1)
    attention_head_dim: int = Field(32, description="head width", ge=8)
    axes_dims_rope: tuple[Width, Width, Width] = Field(
        (8, 12, 12),
        description="rotary widths of frame, row and column; their sum is the head width",
    )
    text_dim: int = Field(96, description="width of both text encoders", ge=16, multiple_of=4)
    text_layers: int = Field(1, description="layers of both text encoders", ge=1)
    text_length: int = Field(32, description="text tokens, in training and at inference", ge=8)
    words: str | None = Field(
        None, description="file with additional words, one per line, that get their own token"
    )
    sentence_encoder: str | None = Field(
        None,
        description="folder of a sentence encoder (BERT) whose word embeddings become the frozen "
        "vocabulary of the T5 encoder",
    )
    float8: bool = Field(
        False,
        description="store the finished transformer's matrices in float8 (e4m3), which halves its "
        "file; sentence_encoder's vocabulary always is",
    )

    @model_validator(mode="after")
    def _widths_add_up(self) -> "ModelConfig":
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"have axes_dims_rope ({', '.join(map(str, self.axes_dims_rope))}) that add up to "
                f"its attention_head_dim ({self.attention_head_dim})"
            )
        return self


class AlignmentConfig(Section):
    """Alignment of the transformer's states with a vision network's features (REPA)."""

    vgg: str | None = Field(
        None, description="torchvision's VGG16 weights (safetensors); null: no alignment"
    )
    block: int = Field(
        3, description="single-stream block after which states are aligned; 0 is the first", ge=0
    )
    weight: float = Field(0.5, description="weight of its loss", ge=0)


class WordSupervisionConfig(Section):
    """Focus and Cover on the attention maps of the named object's word."""

    focus: float = Field(0.0, description="weight of Focus; 0: off", ge=0)
    cover: float = Field(0.0, description="weight of Cover; 0: off", ge=0)
    layers: list[str] = Field(
        ["double.1", "single.2"], description="blocks whose maps are supervised", min_length=1
    )
    queries: Queries = Field("context", description="image tokens whose attention is read")


class BaseTrainingConfig(Section):
    """Flow-matching pre-training of the transformer, text encoders included."""

    steps: int = Field(20000, description="training steps", ge=1)
    batch: int = Field(16, description="pairs per step", ge=1)
    lr: float = Field(1e-3, description="peak learning rate", gt=0)
    betas: tuple[Beta, Beta] = Field((0.9, 0.98), description="AdamW betas")
    weight_decay: float = Field(0.0, description="AdamW weight decay", ge=0)
    warmup: int = Field(200, description="linear warm-up steps", ge=0)
    decay: float = Field(
        0.4,
        description="fraction of the steps, at the end, over which the rate falls linearly to 1 %",
        gt=0,
        le=1,
    )
    clip: float = Field(1.0, description="gradient-norm clip", gt=0)
    coarse_resolution: int | None = Field(
        None,
        description="side of the images in the first steps, for speed; null: always the full one",
        ge=32,
        multiple_of=16,
    )
    coarse_share: float = Field(
        0.5, description="fraction of the steps at coarse_resolution", ge=0, lt=1
    )
    tasks: dict[str, Share] = Field(
        {"copy": 0.1, "style": 0.45, "recolour": 0.4, "tint": 0.05},
        description="fraction of each task in a batch of scenes (for a bank: corpus.photos.tasks)",
    )
    alignment: AlignmentConfig = AlignmentConfig()
    words: WordSupervisionConfig = WordSupervisionConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    perceptual_tasks: tuple[PhotoTask, ...] | None = Field(
        None,
        description="tasks of a bank whose pairs get the perceptual loss, which takes most of a "
        "step's time; null: all",
    )
    timestep_mean: float = Field(
        1.5, description="mean of the normal whose sigmoid is the noise level"
    )
    timestep_std: float = Field(1.2, description="its standard deviation", gt=0)
    bfloat16: bool = Field(
        True, description="autocast to bfloat16, which is faster where the hardware supports it"
    )
    log_every: int = Field(50, description="steps between log rows", ge=1)
    save_every: int = Field(500, description="steps between checkpoints", ge=1)
    validate_every: int = Field(2000, description="steps between validations", ge=1)


class PretrainConfig(Section):
    """Everything `train/pretrain/run.py` reads."""

    renamed: ClassVar = {"start": "init_from", "closer": "refine_crop"}

    seed: int = Field(0, description="seed of initialisation, order and noise", ge=0, lt=2**32)
    output: str = Field(
        "runs/nano_base", description="folder for checkpoints and the finished base"
    )
    init_from: str | None = Field(
        None,
        description="folder of a finished base to start from, with its pixel codec and its words; "
        "its sizes must equal those of model and codec",
    )
    threads: int | None = Field(None, description="CPU threads; null: torch's default", ge=1)
    corpus: CorpusConfig = CorpusConfig()
    codec: CodecConfig = CodecConfig()
    model: ModelConfig = ModelConfig()
    base: BaseTrainingConfig = BaseTrainingConfig()
    edit_steps: int = Field(
        4, description="sampling steps written into the base's regionroute.json", ge=1
    )
    refine_crop: bool = Field(
        False,
        description="whether edits of larger images restyle the object once more in a crop around "
        "it, written there too",
    )
