"""The file of an image encoder: safetensors with the network's sizes and vocabulary."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from regionroute.errors import UserError, first_line
from regionroute.files import atomic_write
from regionroute.models.image_encoder import ImageEncoder

SIZES, VOCABULARY = "sizes", "vocabulary"


def save_image_encoder(network: ImageEncoder, path: Path) -> None:
    """Saves a frozen network."""
    about = {SIZES: json.dumps(network.sizes), VOCABULARY: json.dumps(network.vocabulary)}
    with atomic_write(path) as temporary:
        save_file(network.state_dict(), temporary, metadata=about)


def load_image_encoder(path: str | Path, setting: str = "codec.image_encoder") -> ImageEncoder:
    """A network saved by `save_image_encoder`.

    Args:
        path: its file.
        setting: that names the file, for messages.

    Raises:
        UserError: no such file, or another one.
    """
    setting = f"{setting}={path}"
    if not Path(path).is_file():
        raise UserError(
            f"{setting}: no such file, make one with train/pretrain/train_image_encoder.py"
        )
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            vocabulary = json.loads(about.get(VOCABULARY, "[]"))  # older files have none
            network = ImageEncoder(**json.loads(about[SIZES]), vocabulary=vocabulary)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{setting}: not a network of train/pretrain/train_image_encoder.py "
            f"({first_line(error)}), give another file"
        ) from error
    return network.eval().requires_grad_(False)
