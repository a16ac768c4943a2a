"""The settings of optimizer and training loop, see `regionroute.config.run`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from regionroute.config.base import (
    Count,
    CountOrZero,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Section,
)

Levels = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
PRODIGY_LR = 0.1  # a factor of the step size that Prodigy finds; below this it was meant for Adam


class OptimConfig(Section):
    """The optimizer, the learning rate schedule, and the moving average of the experts."""

    name: Literal["adamw", "adamw8bit", "prodigy"] = Field(
        "adamw",
        description="AdamW, AdamW with 8-bit moments (bitsandbytes), or Prodigy, which adapts the "
        "learning rate itself (set optim.lr=1)",
    )
    lr: Positive = Field(
        1e-4,
        description="learning rate after the warm-up; with prodigy, a factor on its own estimate",
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="the optimizer's two betas")
    weight_decay: NonNegative = Field(0.0, description="decoupled weight decay")
    eps: Positive = Field(1e-8, description="the optimizer's epsilon")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="decay of the learning rate after the warm-up, to 0 at the end"
    )
    warmup: CountOrZero = Field(0, description="steps of linear warm-up")
    clip: NonNegative = Field(1.0, description="gradient clipping: maximum norm; 0: off")
    ema: Fraction = Field(
        0.0,
        description="decay of an exponential moving average of the experts, which is then used "
        "for validation, previews and the exported experts; 0: off",
    )

    @model_validator(mode="after")
    def _lr_fits(self) -> "OptimConfig":
        if self.name == "prodigy" and self.lr < PRODIGY_LR:
            raise ValueError(
                f"have an lr of about 1 with name prodigy, which adapts the step itself ({self.lr} "
                "is one for adamw)"
            )
        return self


class TrainConfig(Section):
    """The loop."""

    renamed: ClassVar = {"explosion": "loss_spike"}

    steps: Count = Field(5000, description="optimizer steps")
    global_batch: Count = Field(
        8, description="pairs per optimizer step, over all processes and accumulation steps"
    )
    accumulation: Count = Field(
        1, description="backward passes per optimizer step; must divide global_batch"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="keep in CPU memory: optimizer (its state, zero_stage 1 to 3) or all (the "
        "frozen weights too, zero_stage 3)",
    )
    compile: bool = Field(
        False,
        description="compile the transformer's blocks with torch.compile; not with zero_stage 3",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    log_every: Count = Field(10, description="steps between two rows of the log")
    save_every: Count = Field(500, description="steps between two checkpoints")
    keep: Count = Field(2, description="number of checkpoints to keep, newest first")
    keep_best: bool = Field(
        True,
        description="also keep the checkpoint with the lowest validation loss (see validate_every)",
    )
    validate_every: CountOrZero = Field(0, description="steps between two validations; 0: off")
    validation_split: Name | None = Field(
        None, description="split for validation; null: val, or test if there is no val"
    )
    validation_samples: Count = Field(
        32,
        description="pairs of that split to validate on, evenly spaced, each at every noise level",
    )
    validation_levels: Count | Levels = Field(
        4,
        description="noise levels of the validation: so many, evenly spaced in (0,1), or a list",
    )
    patience: CountOrZero = Field(
        0,
        description="stop after so many validations without a lower loss; 0: train all steps",
    )
    preview_every: CountOrZero = Field(0, description="steps between two previews; 0: off")
    previews: Count = Field(4, description="pairs shown in a preview")
    loss_spike: NonNegative = Field(
        100.0,
        description="stop at a loss this many median absolute deviations above the median of the "
        "last 100 steps (from step 50 on); 0: stop only when it is not finite",
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        ["tensorboard"], description="trackers to log to, in addition to losses.jsonl"
    )
    project: Name = Field("regionroute", description="project name for wandb and trackio")
    resume: bool = Field(True, description="resume from the newest checkpoint in the output folder")
    deepspeed: str | None = Field(
        None, description="DeepSpeed JSON file that overrides the settings derived from this file"
    )

    @model_validator(mode="after")
    def _stage_fits(self) -> "TrainConfig":
        if self.deepspeed is not None:
            if self.offload != "none":
                raise ValueError(
                    "have offload none with a deepspeed file, which sets offloading itself"
                )
            return self
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"have zero_stage 3 (it is {self.zero_stage}) with offload all: other stages "
                "cannot offload weights"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("have a zero_stage of at least 1 with offload optimizer")
        return self

    @model_validator(mode="after")
    def _patience_sees(self) -> "TrainConfig":
        if self.patience and not (self.validate_every and self.keep_best):
            raise ValueError("have validate_every above 0 and keep_best true, patience needs both")
        return self

    @model_validator(mode="after")
    def _trackers_differ(self) -> "TrainConfig":
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"name each of its trackers once ({', '.join(self.trackers)})")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainConfig":
        if self.global_batch % self.accumulation:
            raise ValueError(
                f"have a global_batch ({self.global_batch}) that its accumulation "
                f"({self.accumulation}) divides"
            )
        return self
