"""A bank on disk, and how a description becomes a painted photo.

FOLDER/bank.json             styles with their descriptions, sizes and settings of the training
FOLDER/painter.safetensors   weights in fp16
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pseudo_labels.stylemamba.bank.config import BankConfig
from pseudo_labels.stylemamba.bank.painter import StylePainter
from regionroute.errors import UserError, first_line
from regionroute.files import atomic_write, read_json, write_json

FACTS_FILE, WEIGHTS_FILE = "bank.json", "painter.safetensors"


class BankFacts(BaseModel):
    """Content of ``bank.json``: descriptions of each style, and the settings."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    styles: dict[str, list[str]]
    settings: BankConfig


@dataclass(frozen=True)
class StyleBank:
    """A trained bank.

    Attributes:
        painter: the network.
        styles: name and descriptions of each style, in the network's order.
        config: settings of the training.
    """

    painter: StylePainter = field(repr=False)
    styles: Sequence[tuple[str, tuple[str, ...]]]
    config: BankConfig

    def save(self, folder: Path) -> None:
        """Write the bank; ``bank.json`` is last."""
        state = {name: value.half() for name, value in self.painter.state_dict().items()}
        with atomic_write(folder / WEIGHTS_FILE) as temporary:
            save_file({k: v.contiguous().cpu() for k, v in state.items()}, temporary)
        styles = {name: list(words) for name, words in self.styles}
        write_json(folder / FACTS_FILE, BankFacts(styles=styles, settings=self.config))

    def paint(self, images: Tensor, weights: Tensor, strength: float = 1.0) -> Tensor:
        """Paint images [B, 3, H, W] in [0, 1] with weights [S] of the styles.

        Args:
            images: of any size.
            weights: ≥ 0, with sum 1.
            strength: η of x + η(y − x); above 1 the change is exaggerated.
        """
        painted = self.painter.paint(images, weights)
        return painted if strength == 1 else torch.lerp(images, painted, strength).clamp(0, 1)


def load_bank(folder: str | Path) -> StyleBank:
    """Read a bank's folder.

    Raises:
        UserError: there is no bank, or it is damaged.
    """
    folder = Path(folder)
    try:
        facts = BankFacts.model_validate(read_json(folder / FACTS_FILE))
        painter = StylePainter(len(facts.styles), facts.settings.painter)
        state = load_file(folder / WEIGHTS_FILE)
        painter.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder}: this bank is damaged, copy it again ({first_line(error)})"
        ) from error
    styles = [(name, tuple(words)) for name, words in facts.styles.items()]
    return StyleBank(painter.eval().requires_grad_(False), styles, facts.settings)
