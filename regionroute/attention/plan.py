"""What to record of one batch: the tokens of its phrases and the masks of their objects."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Phrases to record for one batch, and their object masks. Spans are per sample, never pooled.

    Attributes:
        token_index: long [B,S,K] positions of each pair's phrase among the text tokens, -1 pads.
        masks: [B,S,h,w] soft object masks in [0,1] on the token grid.
        valid: [B,S] bool, False for padding pairs.
        text_len: number of text tokens.
        image_len: number of noisy-target tokens, h·w.

    Raises:
        ValueError: shapes that do not match, or a position outside the text.
    """

    token_index: Tensor
    masks: Tensor
    valid: Tensor
    text_len: int
    image_len: int

    def __post_init__(self) -> None:
        pairs = self.token_index.shape[:2]
        if self.token_index.ndim != 3 or self.masks.ndim != 4 or self.valid.ndim != 2:
            raise ValueError("a plan needs token_index [B,S,K], masks [B,S,h,w] and valid [B,S]")
        if self.masks.shape[:2] != pairs or self.valid.shape != pairs:
            raise ValueError(
                f"token_index {list(self.token_index.shape)}, masks {list(self.masks.shape)} and "
                f"valid {list(self.valid.shape)} must agree in B and S"
            )
        if self.masks.shape[2] * self.masks.shape[3] != self.image_len:
            raise ValueError(
                f"masks on a {self.masks.shape[2]}x{self.masks.shape[3]} grid do not match "
                f"{self.image_len} image tokens"
            )
        # Checked where a plan is made: reading the values later would make the GPU wait.
        on_cpu = self.token_index.device.type == "cpu"
        if on_cpu and bool((self.token_index >= self.text_len).any()):
            raise ValueError(f"a token position lies outside the {self.text_len} text tokens")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return self.masks.shape[2], self.masks.shape[3]

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """The same plan on another device."""
        return replace(
            self,
            token_index=self.token_index.to(device),
            masks=self.masks.to(device),
            valid=self.valid.to(device),
        )
