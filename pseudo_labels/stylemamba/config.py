"""Settings of StyleMamba: the fusion module, the losses, fitting one style, training on many.

None of the numbers is published; they are our choices, near those of CLIPstyler where it has them.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pseudo_labels.stylemamba.modules.ssm import Method
from regionroute.config.run import Section

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class FusionConfig(Section):
    """The style fusion module."""

    width: Annotated[int, Field(ge=4, multiple_of=4)] = Field(
        256, description="width of a token; a multiple of 4 because of the sine positions"
    )
    blocks: Count = Field(4, description="blocks, each with one state-space mixer")
    states: Count = Field(16, description="states per channel of the scan")
    expand: Count = Field(2, description="channels of the scan, as a multiple of the width")
    kernel: Count = Field(4, description="taps of the causal convolution before the scan")
    directions: Literal[1, 4] = Field(
        4,
        description="scans with shared weights: 4 (rows and columns, forwards and backwards) or 1",
    )
    condition: Literal["adaln", "ssm"] = Field(
        "adaln",
        description="where the style enters: only the adaptive LayerNorm (adaln), or also the step "
        "sizes and input weights of the scan (ssm)",
    )
    feed_forward: bool = Field(False, description="a gated feed-forward layer after each scan")
    normalize: bool = Field(
        True,
        description="root mean square normalisation of step sizes, input and output weights of the "
        "scan. Its output is a product of all three and of its input, and without it grows without "
        "bound in fits of a style image (bench/mamba_stability.py)",
    )
    scan: Method = Field("auto", description="how the scan is computed")


class LossConfig(Section):
    """Weights and settings of the losses."""

    directional: NonNegative = Field(1.0, description="weight of the directional loss")
    masked: NonNegative = Field(5.0, description="weight of the masked directional loss")
    second_order: NonNegative = Field(
        1.0, description="weight of the second-order directional loss"
    )
    content: NonNegative = Field(0.3, description="weight of the content loss")
    tv: NonNegative = Field(1e-3, description="weight of the total variation")
    patch_clip: NonNegative = Field(
        0.0, description="weight of CLIPstyler's loss of augmented crops; 0: not computed"
    )
    softening: Positive = Field(
        0.01,
        description="edits of this size in the encoder's space count half in the directional "
        "losses; a larger value gives stronger styles",
    )
    masks: Count = Field(4, description="random masks per step of the masked loss")
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="fraction of the patches that a mask hides"
    )
    mask_grid: Count = Field(14, description="patches along a side")
    crops: Count = Field(16, description="crops per step of the patch loss")
    crop_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="side of a crop, as a fraction of the image side"
    )
    crop_reject: NonNegative = Field(0.7, description="crops whose loss is below this are ignored")

    @model_validator(mode="after")
    def _some_weight(self) -> "LossConfig":
        # the second-order loss needs a step before
        if not any((self.directional, self.masked, self.content, self.tv, self.patch_clip)):
            raise ValueError(
                "have a weight above 0: directional, masked, content, tv or patch_clip"
            )
        return self


class OptimConfig(Section):
    """Settings shared by fitting and training."""

    size: Annotated[int, Field(ge=16)] = Field(256, description="side of the images in pixels")
    batch: Count = Field(4, description="images per step, or all if there are fewer")
    seed: int = Field(0, description="seed of weights, masks and order", ge=0, lt=2**32)
    clip: Positive = Field(1.0, description="maximum norm of the gradient")
    style_input: Literal["both", "text", "direction"] = Field(
        "both",
        description="style input of the module: the embedding of the style (text), the direction "
        "from the neutral words to it (direction), or both",
    )


class FitConfig(OptimConfig):
    """Fitting one style to one or a few images."""

    steps: Count = Field(40, description="optimizer steps, at most")
    learning_rate: Positive = Field(
        5e-4, description="of Adam for up to 64 inputs of a layer, in proportion less for more"
    )
    patience: Count = Field(
        10, description="steps over which style losses are averaged to see whether they still fall"
    )
    tolerance: NonNegative = Field(
        0.002,
        description="stop when the average has fallen by less than this fraction; 0: never stop "
        "before `steps`",
    )


class TrainConfig(OptimConfig):
    """Amortised training: one module for many styles."""

    batch: Count = Field(8, description="(image, style) pairs per step")
    steps: Count = Field(20000, description="optimizer steps")
    learning_rate: Positive = Field(1e-4, description="peak of AdamW, falling along a cosine")
    warmup: Annotated[int, Field(ge=0)] = Field(1000, description="steps of linear warm-up")
    weight_decay: NonNegative = Field(
        0.01, description="of AdamW; never on the rates of the scan, biases and norms"
    )
    neutral: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="fraction of the rows with the neutral words, which must not change"
    )
    log_every: Count = Field(20, description="steps between log rows")
    save_every: Count = Field(500, description="steps between checkpoints")
    preview_every: Count = Field(500, description="steps between preview sheets")
    judged: Count = Field(4, description="photos used for scores and previews")


class MambaConfig(Section):
    """All settings of `regionroute mamba`."""

    fusion: FusionConfig = FusionConfig()
    loss: LossConfig = LossConfig()
    fit: FitConfig = FitConfig()
    train: TrainConfig = TrainConfig()


class ImageLossConfig(LossConfig):
    """Losses for styles given as images, whose directions are between Gram statistics."""

    softening: Positive = Field(
        0.5,
        description="edits of this size in the encoder's space count half in the directional "
        "losses; Gram statistics of a photo and of a style lie 0.7 to 0.9 apart",
    )
    content: NonNegative = Field(0.05, description="weight of the content loss")


class ImageFitConfig(FitConfig):
    """Fitting a style that is given as an image."""

    learning_rate: Positive = Field(5e-3, description="of Adam")


class ImageStyleConfig(MambaConfig):
    """`MambaConfig` with defaults for styles given as images, tuned on real photos."""

    loss: ImageLossConfig = ImageLossConfig()
    fit: ImageFitConfig = ImageFitConfig()
