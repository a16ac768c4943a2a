"""The settings of a training run: every key, its default, its range and what it means.

Defaults are defined here, in `regionroute.config.losses` and in `regionroute.config.train` only.
`regionroute.config.io` reads and writes these models as YAML; ``train/run.py --print-config``
prints them with the descriptions as comments.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from regionroute.config import io as config_io
from regionroute.config.base import (
    Count,
    CountOrZero,
    Fraction,
    Name,
    Names,
    NonNegative,
    Positive,
    Section,
)
from regionroute.config.choices import Dtype, FileDtype, Quantize
from regionroute.config.data import DataConfig
from regionroute.config.io import add_config_arguments, dump_config, save_config
from regionroute.config.losses import FlowConfig, PerceptualConfig, SupervisionConfig
from regionroute.config.sites import Combine, MapChoice, parse_sites
from regionroute.config.train import OptimConfig, TrainConfig
from regionroute.files import AnyPath

__all__ = [
    "BaseConfig",
    "DataConfig",
    "ExpertsConfig",
    "FlowConfig",
    "OptimConfig",
    "PerceptualConfig",
    "RunConfig",
    "Section",
    "SupervisionConfig",
    "TrainConfig",
    "add_config_arguments",
    "dump_config",
    "load_config",
    "save_config",
]

SIMILARITY_EXPERTS = 16  # experts a layer under router similarity, as published


class BaseConfig(Section):
    """The frozen base model."""

    name: Name = Field(
        "nano",
        description="name of an embedded base, folder of a Kontext or FLUX.2-klein model, or hub "
        "id",
    )
    revision: Name | None = Field(
        None,
        description="branch, tag or commit of a base on the hub; null: its main branch. The "
        "commit used is written into the run's config.yaml and experts",
    )
    dtype: Dtype = Field(
        "float32",
        description="precision of the frozen weights; the experts' weights stay in float32, with "
        "bfloat16 autocast computes their products in bfloat16",
    )
    quantize: Quantize | None = Field(
        None,
        description="quantise the frozen weights of the blocks: nf4 (4 bits, bitsandbytes) or fp8 "
        "(8 bits, torchao); null: keep dtype",
    )
    max_text_length: Count | None = Field(
        None, description="length of the prompt in tokens; null: the base's default"
    )


class ExpertsConfig(Section):
    """The LoRA experts and what chooses among them."""

    styles: Names | None = Field(
        None, description="styles to train an expert for; null: all styles in the manifest"
    )
    rank: Count = Field(4, description="LoRA rank of each expert")
    alpha: Positive = Field(4.0, description="LoRA alpha: the update is scaled by alpha/rank")
    targets: Literal["regionroute", "styleexpert", "all"] | Names = Field(
        "regionroute",
        description="target modules: regionroute (to_q, to_k, to_v, to_out.0), styleexpert "
        "(attention and feed-forward of both streams), all (these, adaLN modulation, input and "
        "output layers: experts that paint styles the base does not know), or a list of module "
        "name endings",
    )
    dropout: Fraction = Field(0.0, description="LoRA dropout, on the input of A")
    shared_rank: CountOrZero = Field(
        0, description="rank of an additional expert that every sample uses; 0: none"
    )
    router: Literal["style", "similarity"] = Field(
        "style",
        description="how experts are selected: style (by the style's name, one expert per style) "
        "or similarity (in every layer, by the embedding of an example image)",
    )
    num_experts: Count | None = Field(
        None, description="experts per layer; null: one per style, or 16 with router similarity"
    )
    top_k: Count = Field(
        2, description="router similarity: number of experts that are active for a sample"
    )
    style_encoder: Name | None = Field(
        None,
        description="router similarity: folder of a style encoder (train/style_encoder/run.py); "
        "null: the base's own",
    )
    style_pictures: Name | None = Field(
        None,
        description="router similarity: folder with one subfolder of example images per style; "
        "null: the restyled objects of the manifest",
    )
    init_from: Name | None = Field(
        None,
        description="folder of finished experts by name, of the same base, rank, alpha and layers, "
        "to start from; with shared_rank 0, of these rank and alpha in its files. Router style: "
        "styles that are not trained here are not read. Router similarity: all must be trained "
        "here; each style's mean embedding selects its own expert first",
    )
    init_with: Literal["own", "mean"] = Field(
        "own",
        description="what a style starts with: own (the expert of its name in init_from) or mean "
        "(the mean of all experts there, which may have other styles, rank and alpha: what their "
        "styles have in common)",
    )
    load_balance: NonNegative = Field(
        0.0, description="router similarity: weight of the load-balancing loss"
    )
    dtype: FileDtype = Field(
        "float32",
        description="precision of the exported files; training keeps float32 weights; float8 "
        "(e4m3) is for weights above 0.01, as high learning rates give",
    )
    license: Name | None = Field(
        None, description="licence for the model card, by its hub identifier; null: not stated"
    )

    @model_validator(mode="after")
    def _router_fits(self) -> "ExpertsConfig":
        if self.init_with == "mean" and (self.router != "style" or self.init_from is None):
            raise ValueError("have router style and set init_from with init_with mean")
        if self.router == "style":
            if self.num_experts is not None:
                raise ValueError("leave num_experts null with router style: one per style")
            if self.load_balance:
                raise ValueError("have load_balance 0 with router style, which learns no routing")
        elif self.top_k > (self.num_experts or SIMILARITY_EXPERTS):
            raise ValueError(f"have a top_k ({self.top_k}) of at most num_experts")
        return self


class RoutingConfig(Section):
    """How maps become gates when an edit is routed; kept with the experts."""

    branch: Literal["expert", "base"] = Field(
        "expert",
        description="model that predicts inside the gates: the style's expert, or the base "
        "without experts where it renders the style better",
    )
    prompt: Literal["image", "object"] = Field(
        "image",
        description="prompt of that branch: image (restyle the whole image) or object (the edit's "
        "own prompt, which names the object, as in training)",
    )
    mirror: bool = Field(
        False,
        description="average the maps of the image and of its mirror image; one more model call "
        "per edit",
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.4, description="attention at which a gate is 0.5, relative to the attention on the object"
    )
    sharpness: Positive = Field(
        2.0,
        description="exponent of the attention in the gates: higher is closer to a hard threshold",
    )
    radius: NonNegative = Field(
        0.75,
        description="radius in tokens of the filter that aligns gates with image edges; 0: off",
    )
    edge: Positive = Field(
        1e-3, description="colour variance (colours in [0,1]) below which that filter sees no edge"
    )
    contrast: Annotated[float, Field(ge=1)] = Field(
        4.0, description="steepness of the aligned gates at an edge"
    )
    colour: NonNegative = Field(
        0.0,
        description="weight of colour evidence (is this pixel's colour typical of the region or "
        "of the rest) in the aligned gates; needs a radius above 0. 0: off",
    )
    opening: Annotated[float, Field(ge=1)] = Field(
        1.0,
        description="factor on the token gates when pixel gates composite the edit afterwards; "
        "above 1, soft gates are applied once (by the compositing) instead of twice",
    )
    sharpen: NonNegative = Field(
        0.0,
        description="strength of an unsharp mask inside the region, since edits of few steps are "
        "soft; 0: off",
    )
    confidence: NonNegative = Field(
        3.0,
        description="an edit warns that the object was hardly found when the attention on its "
        "region is below this multiple of uniform attention",
    )
    presence: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="an edit leaves the image unchanged, and says so, when the presence of the "
        "object is below this; for bases whose image encoder is aligned with words; 0: never",
    )


class MapConfig(Section):
    """Where edits read the region map, if it is not where training supervises attention."""

    layers: Names | None = Field(
        None,
        description='attention sites, such as "double.0.context:2@object"; null: the supervised '
        "ones",
    )
    combine: Combine = Field(
        "mean",
        description="mean of the sites' maps as they are, of the maps over their own means, or "
        "their geometric mean",
    )

    @field_validator("layers")
    @classmethod
    def _well_formed(cls, layers: list[str] | None) -> list[str] | None:
        if layers is not None:
            parse_sites(layers)
        return layers

    def choice(self) -> MapChoice | None:
        """The sites, None for the supervised ones."""
        return None if self.layers is None else MapChoice(layers=self.layers, combine=self.combine)


class RunConfig(Section):
    """A training run."""

    seed: CountOrZero = Field(0, description="seed of everything random in the run")
    output: Name = Field("runs/nano", description="folder for everything the run writes")
    base: BaseConfig = Field(BaseConfig(), description="the frozen base model")
    data: DataConfig = Field(DataConfig(), description="the training pairs")
    experts: ExpertsConfig = Field(ExpertsConfig(), description="the LoRA experts")
    flow: FlowConfig = Field(FlowConfig(), description="flow matching")
    supervision: SupervisionConfig = Field(
        SupervisionConfig(), description="attention supervision of the style words"
    )
    map: MapConfig = Field(MapConfig(), description="the region map that edits read")
    routing: RoutingConfig = Field(
        RoutingConfig(), description="how maps become gates when an edit is routed"
    )
    optim: OptimConfig = Field(
        OptimConfig(),
        description="optimizer, learning rate schedule, moving average of the experts",
    )
    train: TrainConfig = Field(TrainConfig(), description="the loop")

    @model_validator(mode="after")
    def _lanes_divide(self) -> "RunConfig":
        lanes, batch = self.data.shuffle_lanes, self.train.global_batch
        if batch % lanes:
            raise ValueError(
                f"have a data.shuffle_lanes ({lanes}) that divides train.global_batch ({batch})"
            )
        return self


def load_config(path: AnyPath | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads the settings of a training run, see `regionroute.config.io.load_config`.

    Raises:
        UserError: a missing or unreadable file, an unknown key, a wrong value.
    """
    return config_io.load_config(path, overrides, RunConfig)
