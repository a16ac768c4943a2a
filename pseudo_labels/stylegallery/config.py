"""Every setting of StyleGallery, with its default and its source.

"Published" marks what the released code does where our default differs; these options reproduce it.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from regionroute.config.run import Section
from regionroute.errors import UserError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class FeatureConfig(Section):
    """Inversion and the weighted average of its features."""

    steps: Annotated[int, Field(ge=2)] = Field(15, description="timesteps of the inversion")
    block: int | None = Field(
        None,
        description="block whose output is averaged, by its number from 0: an up-block of Stable "
        "Diffusion (null: the last but one), or a block of a transformer, double ones first (null: "
        "the middle one)",
        ge=0,
    )
    refine: Annotated[int, Field(ge=0)] = Field(
        0,
        description="fixed-point iterations of each step of the inversion, which make it the "
        "sampler's exact reverse; each costs a model call (published: 0)",
    )
    midpoint: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.7, description="fraction of the timesteps after which a feature weighs half"
    )
    sharpness: Positive = Field(5.0, description="how fast the weights of later features fall")


class ClusterConfig(Section):
    """Regions of an image."""

    source: Literal["features", "sam"] = Field(
        "features", description="clusters of features, or masks of Segment Anything"
    )
    most: Annotated[int, Field(ge=2)] = Field(10, description="largest number of clusters tried")
    components: Count = Field(60, description="principal components that are clustered")
    restarts: Count = Field(10, description="restarts of K-means; the best is kept")
    silhouette_points: Annotated[int, Field(ge=10)] = Field(
        5000, description="maximum number of points that the number of clusters is chosen by"
    )
    merge: NonNegative = Field(
        0.85, description="clusters whose mean latents are nearer than this are merged"
    )
    sam_merge: NonNegative = Field(0.5, description="the same for masks of Segment Anything")
    linkage: Literal["single", "complete"] = Field(
        "single",
        description="single merges along chains, as published; complete requires it of every pair",
    )
    depth_span: Positive = Field(
        0.75, description="depth range (5 to 95 %) above which a cluster is split in two"
    )
    depth_merge: NonNegative = Field(
        0.35,
        description="after a split, clusters whose latents are nearer than this are merged...",
    )
    depth_gap: NonNegative = Field(0.3, description="...if their mean depths differ by less")
    island: Count = Field(
        20,
        description="connected parts with fewer cells are merged into neighbours; 1: none are",
    )


class MatchConfig(Section):
    """Matching of regions with regions of the references."""

    statistical: NonNegative = Field(0.25, description="weight of the statistical similarity")
    semantic: NonNegative = Field(1.0, description="weight of the semantic similarity (DINOv2)")
    geometric: NonNegative = Field(0.125, description="weight of the bounding circles' overlap")
    statistics: Literal["attention", "random_transformer"] = Field(
        "attention",
        description="applied to the features of a region before their mean and variance: attention "
        "without parameters, or, as published, an untrained transformer (with a fixed seed)",
    )
    points: Count = Field(
        1024, description="maximum number of cells of a region used for statistics"
    )


class EnergyConfig(Section):
    """The losses, and how they are minimised."""

    mode: Literal["optimize", "guided"] = Field(
        "optimize",
        description="optimize: the latents, as in the released code; guided: between the steps "
        "of the sampler, as in the paper",
    )
    steps: Count = Field(150, description="timesteps, from noisy to clean")
    iterations: Count = Field(1, description="optimiser steps at each timestep")
    learning_rate: Positive = Field(0.05, description="of Adam")
    content_weight: NonNegative = Field(0.26, description="of the global content loss")
    temperature: Positive = Field(
        1.5, description="factor on the attention logits, from the released code"
    )
    layers: Count | list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="attention layers used: so many from the last, or a list of their numbers from "
        "0; null: three of eight from the last, 6 of Stable Diffusion 1.5's 16 as published",
    )
    start: Literal["instance", "channel", "content", "inverted"] = Field(
        "instance",
        description="initial latents: the inverted ones, normalised over space (instance) or over "
        "channels (channel, published) to remove the style, or not (inverted); or the content's",
    )
    masking: Literal["exclude", "multiply"] = Field(
        "exclude",
        description="keys outside the matched region get no weight (exclude), or are set to zero, "
        "which leaves them some weight (multiply, published)",
    )
    schedule: Literal["leading", "trailing", "lcm"] = Field(
        "leading", description="spacing of the timesteps"
    )
    save_every: Count = Field(10, description="timesteps between saved states")
    seed: int = Field(42, description="seed of the noise in guided mode", ge=0, lt=2**32)


class FlowConfig(Section):
    """What diffusion transformers have and Stable Diffusion does not; all choices are ours."""

    context: Literal["own", "none"] = Field(
        "own",
        description="the context image of these editing models: own, the image itself, with which "
        "they were trained; none, which halves the tokens",
    )
    positions: bool = Field(
        False,
        description="compare queries and keys with their rotary positions, which ties a region to "
        "the same place of the reference",
    )
    guidance: NonNegative = Field(1.0, description="of guidance-distilled models")


class GalleryConfig(Section):
    """All settings of `regionroute gallery`."""

    size: Annotated[int, Field(ge=32, multiple_of=8)] | None = Field(
        None,
        description="working size: side of the square images in pixels; null: 512, or that of a "
        "smaller base",
    )
    seed: int = Field(42, description="seed of clustering", ge=0, lt=2**32)
    features: FeatureConfig = FeatureConfig()
    clusters: ClusterConfig = ClusterConfig()
    matching: MatchConfig = MatchConfig()
    energy: EnergyConfig = EnergyConfig()
    flow: FlowConfig = FlowConfig()

    @model_validator(mode="after")
    def _weighed(self) -> "GalleryConfig":
        weights = self.matching
        if weights.statistical + weights.semantic + weights.geometric == 0:
            raise UserError("matching: all three weights are 0, set at least one")
        return self


# "pairs" is ours: as many optimiser steps as "full", but two at each of half as many timesteps, so
# the references are encoded half as often. The others are the released step sizes for distilled
# models, whose LoRA is given with --lora. The number of steps for Hyper-SD is not published; we use
# that of LCM.
PRESETS: dict[str, list[str]] = {
    "full": [],
    "pairs": ["energy.steps=75", "energy.iterations=2"],
    "lcm": [
        "energy.schedule=lcm",
        "energy.steps=28",
        "energy.iterations=3",
        "energy.learning_rate=0.25",
        "energy.content_weight=0.33",
    ],
    "hyper-sd": [
        "energy.schedule=trailing",
        "energy.steps=28",
        "energy.iterations=3",
        "energy.learning_rate=0.15",
        "energy.content_weight=0.38",
    ],
}
