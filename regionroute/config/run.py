"""The settings of a training run: every key, its default, its range and what it means.

This file and `regionroute.config.train` are the only places where defaults stand.
`regionroute.config.io` reads and writes these models as YAML; ``train/run.py --print-config``
prints them with the descriptions as comments.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeVar, get_args, overload

from pydantic import BaseModel, Field, field_validator, model_validator

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
from regionroute.config.io import add_config_arguments, dump_config, save_config
from regionroute.config.sites import Queries, parse_sites
from regionroute.config.train import OptimConfig, TrainConfig
from regionroute.errors import UserError
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

Quantize = Literal["nf4", "fp8"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)
SIMILARITY_EXPERTS = 16  # experts a layer under router similarity, as published


class BaseConfig(Section):
    """The frozen base model."""

    name: Name = Field(
        "nano", description="embedded name, folder of a Kontext or FLUX.2-klein model, or hub id"
    )
    revision: Name | None = Field(
        None,
        description="branch, tag or commit of a base on the hub; null: its main branch. The "
        "commit used is written into the run's config.yaml and experts",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="precision of the frozen weights; the experts' weights stay in float32, with "
        "bfloat16 autocast computes their products in bfloat16",
    )
    quantize: Quantize | None = Field(
        None,
        description="bits of the blocks' frozen weights: nf4 (4, bitsandbytes), fp8 (8, torchao); "
        "null: those of dtype",
    )
    max_text_length: Count | None = Field(
        None, description="tokens of the prompt the base sees; null: the base's own"
    )


class DataConfig(Section):
    """The training pairs."""

    manifest: Name = Field(
        "data/scenes/manifest.jsonl",
        description="manifest.jsonl of the pairs, its folder, or a pattern: manifest-*.jsonl",
    )
    split: Name = Field("train", description="split of the manifest to train on")
    resolution: Annotated[int, Field(ge=16)] | None = Field(
        None, description="side in pixels of the square of equal area; null: the base's own"
    )
    buckets: bool = Field(
        True,
        description="pictures of several aspects are trained in several sizes of equal area, a "
        "batch of one size each; false: all are cut to one size",
    )
    cache: str | None = Field(
        None, description="folder of cached latents and embeddings; null: <output>/cache"
    )
    workers: CountOrZero = Field(
        0, description="processes that load pairs; 0: the training process itself"
    )


class ExpertsConfig(Section):
    """The LoRA experts and what chooses among them."""

    styles: Names | None = Field(
        None, description="styles to train an expert for; null: all in the manifest"
    )
    rank: Count = Field(4, description="rank of each expert's A and B")
    alpha: Positive = Field(4.0, description="the update is scaled by alpha/rank")
    targets: Literal["regionroute", "styleexpert"] | Names = Field(
        "regionroute",
        description="layers that get experts: regionroute (to_q, to_k, to_v, to_out.0), "
        "styleexpert (attention and feed-forward of both streams), or a list of module name "
        "endings",
    )
    dropout: Fraction = Field(0.0, description="dropout on the input of A")
    shared_rank: CountOrZero = Field(
        0, description="rank of one more expert that every sample uses; 0: none"
    )
    router: Literal["style", "similarity"] = Field(
        "style",
        description="what chooses the experts: the style's name, one expert each, or in every "
        "layer the embedding of an example picture",
    )
    num_experts: Count | None = Field(
        None, description="experts a layer; null: one a style, or 16 with router similarity"
    )
    top_k: Count = Field(2, description="router similarity: experts used at a time")
    style_encoder: Name | None = Field(
        None,
        description="router similarity: folder of a style encoder (train/style_encoder/run.py); "
        "null: the base's own",
    )
    style_pictures: Name | None = Field(
        None,
        description="router similarity: folder of one folder of example pictures a style; null: "
        "the restyled objects of the manifest",
    )
    load_balance: NonNegative = Field(
        0.0, description="router similarity: weight of the loss that evens out the use of experts"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of the exported files; training keeps float32 weights"
    )
    license: Name | None = Field(
        None, description="licence that the model card names, as on the hub; null: not stated"
    )

    @model_validator(mode="after")
    def _router_fits(self) -> "ExpertsConfig":
        if self.router == "style":
            if self.num_experts is not None:
                raise ValueError("leave num_experts null with router style: one a style")
            if self.load_balance:
                raise ValueError("have load_balance 0 with router style, which learns no choice")
        elif self.top_k > (self.num_experts or SIMILARITY_EXPERTS):
            raise ValueError(f"have a top_k ({self.top_k}) of at most num_experts")
        return self


class PerceptualConfig(Section):
    """A perceptual loss on the pictures that predictions decode to; its decoding keeps a graph."""

    vgg: Name | None = Field(
        None, description="torchvision's VGG16 weights (safetensors); null: no such loss"
    )
    weight: NonNegative = Field(0.15, description="weight of this loss")
    bfloat16: bool = Field(False, description="run VGG in bf16, faster where the processor has it")


class FlowConfig(Section):
    """Flow matching."""

    timesteps: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="distribution of the training timesteps"
    )
    mean: float = Field(0.0, description="logit_normal: mean before the sigmoid")
    std: Positive = Field(1.0, description="logit_normal: standard deviation before the sigmoid")
    mask_weight: Positive = Field(
        1.0,
        description="weight of pixels inside the mask in the flow loss (outside 1), renormalised "
        "to mean one",
    )
    guidance: NonNegative = Field(
        1.0, description="guidance told to a guidance-distilled base in training"
    )
    perceptual: PerceptualConfig = Field(
        PerceptualConfig(),
        description="a loss on the pictures that predictions decode to, for edits of few steps",
    )


class SupervisionConfig(Section):
    """Attention supervision of the style words: Focus and Cover."""

    renamed: ClassVar = {
        "shares_every": "gradient_norms_every",
        "max_share": "max_gradient_ratio",
    }

    focus: NonNegative = Field(0.1, description="weight of Focus; 0: off")
    cover: NonNegative = Field(0.2, description="weight of Cover; 0: off")
    layers: Literal["all"] | Names = Field(
        "all",
        description='supervised blocks: all, or names such as "double.1" (mean over its heads), '
        '"double.1:0,3" (over two heads), "double.1.context" (asked by the context picture)',
    )
    queries: Queries = Field(
        "target",
        description="image tokens whose attention to the style words is read, where a layer does "
        "not say it",
    )
    norm: Literal["full", "text", "selected"] = Field(
        "full",
        description="keys the attention is normalised over: all, the text's, or the selected "
        "words' (as in the released code)",
    )
    focus_input: Literal["ratio", "prob"] = Field(
        "ratio",
        description="what Focus's softmax sees: the log of the map, which at tau 1 gives the map "
        "over its sum, or the map itself (as published)",
    )
    tau: Positive = Field(1.0, description="temperature of Focus's softmax over the pixels")
    cover_mode: Literal["logratio", "prob"] = Field(
        "logratio",
        description="what Cover's sigmoid sees: the log of the map over its mean, or the map "
        "itself (as published)",
    )
    alpha: Positive = Field(1.0, description="scale in front of Cover's sigmoid")
    aggregate: Literal["layer", "map"] = Field(
        "layer", description="losses of each layer's map averaged, or the loss of the mean map"
    )

    gradient_norms_every: CountOrZero = Field(
        100,
        description="steps between two measurements of the gradient norms of flow, Focus and "
        "Cover, each of which takes as long as three steps; 0: off",
    )
    max_gradient_ratio: Positive | None = Field(
        None,
        description="largest gradient norm of Focus and Cover together, relative to that of the "
        "flow loss: every measurement scales both weights down to it; null: no cap",
    )

    @model_validator(mode="after")
    def _cap_is_measured(self) -> "SupervisionConfig":
        if self.max_gradient_ratio is not None and not self.gradient_norms_every:
            raise ValueError("have gradient_norms_every above 0, max_gradient_ratio needs it")
        return self

    @field_validator("layers")
    @classmethod
    def _style_sites(cls, layers: str | list[str]) -> str | list[str]:
        try:
            specs = parse_sites(layers)
        except UserError as error:
            raise ValueError(f"hold names of blocks: {error}") from error
        if any(spec.word != "style" for spec in specs):
            raise ValueError('name no "@object": the losses teach the style words')
        return layers


class RoutingConfig(Section):
    """How maps become gates when an edit is routed; kept with the experts."""

    branch: Literal["expert", "base"] = Field(
        "expert",
        description="what restyles inside the gates: the style's expert, or the base alone where "
        "it knows the style better",
    )
    prompt: Literal["image", "object"] = Field(
        "image",
        description="what that is told: to restyle the whole image, or the prompt itself, which "
        "names the object, as the experts were trained",
    )
    mirror: bool = Field(
        False,
        description="read maps from the picture's mirror image too and take the mean; one model "
        "call more an edit",
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.4, description="attention at which a gate is half open, relative to that on the object"
    )
    sharpness: Positive = Field(
        2.0, description="of the way from closed to open, as a power of the attention"
    )
    radius: NonNegative = Field(
        0.75,
        description="window in which gates are fitted to the picture's edges, in tokens; 0: off",
    )
    edge: Positive = Field(
        1e-3, description="variance of the colours, in [0,1], below which there is no edge to fit"
    )
    contrast: Annotated[float, Field(ge=1)] = Field(
        4.0, description="steepness of the fitted gates at an edge"
    )
    colour: NonNegative = Field(
        0.0,
        description="weight of what a pixel's colour tells, beside the map: whether it is one of "
        "the region or of the rest; gates are fitted to both, with a radius. 0: off",
    )
    opening: Annotated[float, Field(ge=1)] = Field(
        1.0,
        description="factor on gates whose region is cut out of the edit once more, for an exact "
        "background; above 1 a half open token is restyled fully there, to be halved once",
    )
    sharpen: NonNegative = Field(
        0.0,
        description="strength of an unsharp mask on what is restyled: edits of few steps are near "
        "the mean of all that fits, and soft; 0: off",
    )
    confidence: NonNegative = Field(
        3.0,
        description="attention on the region, in multiples of what each token would get if all "
        "got the same, below which an edit warns that the object was hardly found",
    )


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
    routing: RoutingConfig = Field(
        RoutingConfig(), description="how maps become gates when an edit is routed"
    )
    optim: OptimConfig = Field(
        OptimConfig(), description="the optimizer, the learning rate's way, the experts' average"
    )
    train: TrainConfig = Field(TrainConfig(), description="the loop")


Model = TypeVar("Model", bound=BaseModel)


@overload
def load_config(path: AnyPath | None, overrides: Sequence[str] = ...) -> RunConfig: ...
@overload
def load_config(path: AnyPath | None, overrides: Sequence[str], model: type[Model]) -> Model: ...


def load_config(
    path: AnyPath | None, overrides: Sequence[str] = (), model: type[BaseModel] = RunConfig
) -> BaseModel:
    """Reads settings as `config_io.load_config` does, those of a training run by default.

    Raises:
        UserError: a missing or unreadable file, an unknown key, a wrong value.
    """
    return config_io.load_config(path, overrides, model)
