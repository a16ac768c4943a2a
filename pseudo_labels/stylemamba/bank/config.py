"""Settings of a bank's training."""

from pydantic import Field

from pseudo_labels.stylemamba.bank.painter import PainterConfig
from regionroute.config.base import Count, CountOrZero, Fraction, NonNegative, Positive, Section

# Settings that a resumed run may change: lengths, logs, and those of the second stage.
FREE = (
    *("steps", "warmup", "log_every", "save_every"),
    *("style_steps", "style_batch", "style_crop", "style_rate", "gram", "content", "pixels"),
)


class BankTrainConfig(Section):
    """First the painted targets are learned, then the style images' Gram statistics."""

    targets: Count = Field(20, description="painted targets for each style")
    side: Count = Field(256, description="shorter side of targets and style images in pixels")
    crop: Count = Field(128, multiple_of=8, description="side of the crops; at most `side`")
    batch: Count = Field(2, description="crops per step")
    init_from: str | None = Field(
        None, description="folder of a bank of the same styles and sizes, whose weights start it"
    )
    steps: CountOrZero = Field(2400, description="steps on the targets alone")
    learning_rate: Positive = Field(1.5e-3, description="peak of Adam, falling along a cosine")
    warmup: CountOrZero = Field(100, description="steps of linear warm-up, in both stages")
    edges: NonNegative = Field(1.0, description="weight of the L1 loss of neighbours' differences")
    style_steps: CountOrZero = Field(
        300, description="further steps with the Gram loss; they need --vgg"
    )
    style_batch: Count = Field(1, description="crops per step of these")
    style_crop: Count | None = Field(
        None, multiple_of=8, description="side of their crops; null: as `crop`"
    )
    style_rate: Positive = Field(5e-4, description="their learning rate, falling along a cosine")
    gram: NonNegative = Field(0.1, description="weight of the Gram loss")
    content: NonNegative = Field(
        0.0, description="weight of the distance from the photo's features"
    )
    pixels: NonNegative = Field(1.0, description="weight of the targets in these steps")
    average: Fraction = Field(0.995, description="decay of the weights' moving average")
    seed: int = Field(0, description="seed of weights, order and crops", ge=0, lt=2**32)
    log_every: Count = Field(20, description="steps between log rows")
    save_every: Count = Field(100, description="steps between checkpoints")


class BankConfig(Section):
    """All settings of `regionroute mamba train` for a bank of painters."""

    painter: PainterConfig = PainterConfig()
    train: BankTrainConfig = BankTrainConfig()
