"""The settings of the losses, see `regionroute.config.run`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from regionroute.config.base import (
    CountOrZero,
    Name,
    Names,
    NonNegative,
    Positive,
    Section,
)
from regionroute.config.choices import Aggregate, Backend, CoverMode, FocusInput, Norm, Timesteps
from regionroute.config.sites import Queries, parse_sites
from regionroute.errors import UserError


class PerceptualConfig(Section):
    """A perceptual loss on decoded predictions, with gradients through the decoder."""

    renamed: ClassVar = {"vgg": "network"}

    network: Name | None = Field(
        None,
        description="network whose features are compared: efficientnet-lite0, which is installed, "
        "or a file with torchvision's VGG16 weights (safetensors); null: off",
    )
    weight: NonNegative = Field(0.15, description="weight of this loss")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="fraction of each batch that gets this loss, which takes as long as a small "
        "base's own step",
    )
    bfloat16: bool = Field(
        False, description="run it in bfloat16, which is faster where the hardware supports it"
    )


class FlowConfig(Section):
    """Flow matching."""

    timesteps: Timesteps = Field("uniform", description="distribution of the training timesteps")
    mean: float = Field(0.0, description="logit_normal: mean before the sigmoid")
    std: Positive = Field(1.0, description="logit_normal: standard deviation before the sigmoid")
    mask_weight: Positive = Field(
        1.0,
        description="weight of pixels inside the mask in the flow loss (1 outside), normalised to "
        "mean 1",
    )
    guidance: NonNegative = Field(
        1.0, description="guidance value fed to a guidance-distilled base during training"
    )
    perceptual: PerceptualConfig = Field(
        PerceptualConfig(),
        description="perceptual loss on decoded predictions, for edits of few steps",
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
        '"double.1:0,3" (over two heads), "double.1.context" (queries of the context image)',
    )
    queries: Queries = Field(
        "target",
        description="image tokens used as queries of the attention maps, for layers that do not "
        "name them",
    )
    norm: Norm = Field(
        "full",
        description="keys of the softmax: full (all keys), text (all text tokens), or selected "
        "(the style tokens only, losses per token, as in the published code)",
    )
    focus_input: FocusInput = Field(
        "ratio",
        description="input of the softmax in Focus: ratio (log of the map; with tau 1 the softmax "
        "is the map over its sum) or prob (the map itself, as published)",
    )
    backend: Backend = Field(
        "auto",
        description="kernel of the supervised attention: auto takes the first of cpu, flash, "
        "efficient, dense that runs here; `regionroute doctor` lists them; norm full only",
    )
    tau: Positive = Field(1.0, description="temperature of the softmax over pixels in Focus")
    cover_mode: CoverMode = Field(
        "logratio",
        description="input of the sigmoid in Cover: logratio (log of the map over its mean) or "
        "prob (the map itself, as published)",
    )
    alpha: Positive = Field(1.0, description="scale of the input of the sigmoid in Cover")
    aggregate: Aggregate = Field(
        "layer",
        description="layer: average the losses of the layers' maps; map: one loss of their mean "
        "map",
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

    @model_validator(mode="after")
    def _backend_is_used(self) -> "SupervisionConfig":
        if self.backend != "auto" and self.norm != "full":
            raise ValueError(f"have norm full with backend {self.backend}, others use no kernel")
        return self

    @field_validator("layers")
    @classmethod
    def _style_sites(cls, layers: str | list[str]) -> str | list[str]:
        try:
            specs = parse_sites(layers)
        except UserError as error:
            raise ValueError(f"hold names of blocks: {error}") from error
        if any(spec.word != "style" for spec in specs):
            raise ValueError('not name "@object": the losses supervise the style words')
        return layers
