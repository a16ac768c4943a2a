"""Every setting of StyleGallery, with its default and its source.

"Published" is what the released code does where our default differs; those switches are here to
reproduce it.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from regionroute.config.run import Section
from regionroute.errors import UserError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class FeatureConfig(Section):
    """DDIM inversion and the mix of its features."""

    steps: Annotated[int, Field(ge=2)] = Field(15, description="timesteps of the inversion")
    block: int | None = Field(
        None, description="up-block whose output is mixed; null: the last but one", ge=0
    )
    midpoint: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.7, description="share of the timesteps after which a feature weighs half"
    )
    sharpness: Positive = Field(5.0, description="how fast the weights of later features fall")


class ClusterConfig(Section):
    """Regions of a picture."""

    source: Literal["features", "sam"] = Field(
        "features", description="clusters of features, or masks of Segment Anything"
    )
    most: Annotated[int, Field(ge=2)] = Field(10, description="largest number of clusters tried")
    components: Count = Field(60, description="principal components that are clustered")
    restarts: Count = Field(10, description="starts of K-means, the best is kept")
    silhouette_points: Annotated[int, Field(ge=10)] = Field(
        5000, description="points that the number of clusters is chosen by, at most"
    )
    merge: NonNegative = Field(
        0.85, description="clusters whose mean latents are nearer than this become one"
    )
    sam_merge: NonNegative = Field(0.5, description="the same for masks of Segment Anything")
    linkage: Literal["single", "complete"] = Field(
        "single",
        description="single joins along chains, as published; complete asks it of every pair",
    )
    depth_span: Positive = Field(
        0.75, description="span of depth (5 to 95 %) from which a cluster is split in two"
    )
    depth_merge: NonNegative = Field(
        0.35, description="after a split, latents nearer than this are joined again..."
    )
    depth_gap: NonNegative = Field(0.3, description="...if their mean depths differ by less")
    island: Count = Field(
        20, description="connected parts with fewer cells go to their neighbours; 1: none do"
    )


class MatchConfig(Section):
    """Which region of which reference a region takes its style from."""

    statistical: NonNegative = Field(0.25, description="weight of the statistical similarity")
    semantic: NonNegative = Field(1.0, description="weight of the semantic similarity (DINOv2)")
    geometric: NonNegative = Field(0.125, description="weight of the bounding circles' overlap")
    statistics: Literal["attention", "random_transformer"] = Field(
        "attention",
        description="what mixes a region's features before their mean and variance: attention "
        "without parameters, or an untrained transformer, as published (with a fixed seed)",
    )
    points: Count = Field(1024, description="cells of a region that statistics are made of")


class EnergyConfig(Section):
    """The losses, and how they are minimised."""

    mode: Literal["optimize", "guided"] = Field(
        "optimize",
        description="optimize: the latents alone, as released; guided: between the steps of a "
        "DDIM sampler, as the paper tells it",
    )
    steps: Count = Field(150, description="timesteps, from noisy to clean")
    iterations: Count = Field(1, description="optimiser steps at each timestep")
    learning_rate: Positive = Field(0.05, description="of Adam")
    content_weight: NonNegative = Field(0.26, description="of the global content loss")
    temperature: Positive = Field(
        1.5, description="factor on the attention's logits; the released code's"
    )
    layers: Count = Field(6, description="self-attention layers used, counted from the last")
    start: Literal["instance", "channel", "content", "inverted"] = Field(
        "instance",
        description="first latents: the inverted ones with the style removed by normalising over "
        "space, over channels (published), not at all (inverted); or the content's",
    )
    masking: Literal["exclude", "multiply"] = Field(
        "exclude",
        description="keys outside the matched region get no weight, or are set to zero and keep "
        "some, as published",
    )
    schedule: Literal["leading", "trailing", "lcm"] = Field(
        "leading", description="spacing of the timesteps"
    )
    save_every: Count = Field(10, description="timesteps between states that a run resumes from")
    seed: int = Field(42, description="seed of the noise in guided mode", ge=0, lt=2**32)


class GalleryConfig(Section):
    """Everything `regionroute gallery` reads."""

    size: Annotated[int, Field(ge=32, multiple_of=8)] = Field(
        512, description="side in pixels at which all pictures are worked on"
    )
    seed: int = Field(42, description="seed of clustering", ge=0, lt=2**32)
    features: FeatureConfig = FeatureConfig()
    clusters: ClusterConfig = ClusterConfig()
    matching: MatchConfig = MatchConfig()
    energy: EnergyConfig = EnergyConfig()

    @model_validator(mode="after")
    def _weighed(self) -> "GalleryConfig":
        weights = self.matching
        if weights.statistical + weights.semantic + weights.geometric == 0:
            raise UserError("matching: all three weights are 0, give one of them a weight")
        return self


# "pairs" is ours: as many optimiser steps as "full", but two at each of half as many timesteps, for
# which the references are looked at once. The others are step sizes for distilled models (their
# LoRA is the user's to give), as released; the number of steps with Hyper-SD is not stated, LCM's
# is taken.
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
