"""LPIPS and CLIP: found, loaded and hashed; downloaded only when the user names a hub model.

A network without weights is reported as missing. None is replaced by another or run with random
weights: a number from random weights must not look like a result.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from eval.encoders.trust import check_features, check_trained, tensors_hash
from regionroute.data.images import to_pil
from regionroute.errors import UserError, first_line
from regionroute.hub_names import commit_of_model, used_name
from regionroute.pretrained import load_pretrained

LPIPS_VARIABLE = "REGIONROUTE_LPIPS"
LPIPS_MIN_SIDE = 32  # smaller images shrink to nothing inside AlexNet
HUB_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's own name in the torch hub cache
LPIPS_REMEDY = (
    "give --lpips-weights FILE with torchvision's AlexNet weights (safetensors or pth), set "
    f"{LPIPS_VARIABLE}, or run once, online: "
    "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\""
)
CLIP_REMEDY = "give --clip NAME_OR_FOLDER, for example --clip openai/clip-vit-large-patch14"


class ImageTextEncoder(Protocol):
    """Maps images and texts to one embedding space, as CLIP does."""

    def encode_image(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """B images [3,h,w] in [0,1], sizes may differ, to embeddings [B,D]."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """B texts to embeddings [B,D]."""
        ...

    def identity(self) -> dict[str, str]:
        """Name and weight hash, written next to every number made with this encoder."""
        ...


def weights_hash(module: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 over all weights, by name, with their types."""
    return tensors_hash(module.state_dict())


class PerceptualDistance(nn.Module):
    """LPIPS v0.1 with AlexNet: the `lpips` package with given convolution weights.

    Args:
        features: torchvision's AlexNet weights, keys ``features.*``; other keys are ignored.
        source: where they came from, for the output files.

    Raises:
        ValueError: a convolution is missing or of another shape.
    """

    def __init__(self, features: dict[str, Tensor], source: str = "") -> None:
        super().__init__()
        import lpips  # brings torchvision and scipy along: seconds that only this metric needs

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package calls torchvision by its old arguments
            self.net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        self.source = source
        self._copy(features)
        self.requires_grad_(False).eval()

    def _copy(self, features: dict[str, Tensor]) -> None:
        """Fills every convolution; nothing random may be left."""
        for name, parameter in self.net.net.named_parameters():
            key = "features." + name.split(".", 1)[1]  # slice2.3.weight -> features.3.weight
            value = features.get(key)
            if value is None or value.shape != parameter.shape:
                raise ValueError(f"{key} is {'missing' if value is None else 'of another shape'}")
            with torch.no_grad():
                parameter.copy_(value)

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return {"encoder": "LPIPS 0.1 AlexNet", "weights": weights_hash(self.net)}

    def spatial_map(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance at every pixel: the layers' maps, upsampled to the images and summed.

        Args:
            a: images [B,3,H,W] in [0,1].
            b: images [B,3,H,W] in [0,1].

        Returns:
            [B,1,H,W] ≥ 0; NaN everywhere if a side is below 32 pixels, too small for AlexNet.
        """
        return self._layers(a, b, spatial=True)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The usual LPIPS of whole images [B,3,H,W] in [0,1]: [B]; NaN below 32 pixels."""
        return self._layers(a, b, spatial=False)[:, 0, 0, 0]

    @torch.no_grad()
    def _layers(self, a: Tensor, b: Tensor, spatial: bool) -> Tensor:
        if min(a.shape[2:]) < LPIPS_MIN_SIDE:
            return torch.full_like(a[:, :1], torch.nan)
        self.net.spatial = spatial
        # Two equal images give bit-equal features, hence exactly zero.
        value: Tensor = self.net(a.float(), b.float(), normalize=True)
        return value


def find_lpips_weights(given: str | None) -> Path | None:
    """The file with AlexNet's weights: what was given, the variable's, or torch hub's cached one.

    Returns:
        The file, None if nothing was asked for and nothing is cached.

    Raises:
        UserError: the given file or folder holds no such weights.
    """
    asked = given or os.environ.get(LPIPS_VARIABLE)
    if not asked:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / HUB_FILE
        return cached if cached.is_file() else None
    origin = "--lpips-weights" if given else LPIPS_VARIABLE
    path = Path(asked).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{origin} {asked}: no such file or folder, check the path")
    for pattern in ("*alexnet*.safetensors", "*alexnet*.pth"):
        for file in sorted(path.glob(pattern)):
            return file
    raise UserError(f"{origin} {asked}: no *alexnet*.safetensors or *alexnet*.pth in this folder")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file; only tensors are read, no code.

    Raises:
        OSError: the file cannot be read at all.
        Exception: of nearly any class, for a file that is something else.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guesses about foreign files; ours says it better
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_lpips(path: Path, device: str | torch.device = "cpu") -> PerceptualDistance:
    """The distance with the weights in `path`.

    Raises:
        UserError: the file is damaged or does not hold torchvision's AlexNet.
    """
    try:
        features = read_weights(path)
        distance = PerceptualDistance(features, path.name)
    except OSError:
        raise
    # Any exception class can come out of reading a file that is something else.
    except Exception as error:
        raise UserError(
            f"{path}: not torchvision's AlexNet weights ({first_line(error)}), give another file"
        ) from error
    check_features("alexnet", features, path, f"--lpips-weights {path}")
    return distance.to(device)


class ClipEncoder:
    """A CLIP-like model of transformers with its own preprocessing.

    Args:
        model: has `get_image_features` and `get_text_features`.
        processor: its image processor.
        tokenizer: its tokenizer.
        name: for the output files.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, name: str) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.tokenizer = tokenizer
        self.name = name

    @torch.no_grad()
    def encode_image(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """B images [3,h,w] in [0,1], sizes may differ, to unit vectors [B,D]."""
        pixels = self.processor(images=[to_pil(image) for image in images], return_tensors="pt")
        features = self.model.get_image_features(
            pixel_values=pixels["pixel_values"].to(self.model.device, self.model.dtype)
        )
        return F.normalize(_pooled(features).float(), dim=1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """B texts to unit vectors [B,D]."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).to(self.model.device)
        return F.normalize(_pooled(self.model.get_text_features(**tokens)).float(), dim=1)

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return {"encoder": self.name, "weights": weights_hash(self.model)}


def load_clip(name: str, device: str | torch.device = "cpu") -> ClipEncoder:
    """CLIP by hub name or local folder.

    Raises:
        UserError: not found, not reachable, not an image-text model, or weights missing or random.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model, processor, tokenizer = load_trained(
        "--clip", name, "an image-text model", AutoModel, (AutoImageProcessor, AutoTokenizer)
    )
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(f"--clip {name}: this is no image-text model, give a CLIP or SigLIP")
    return ClipEncoder(model.to(device), processor, tokenizer, shown_name(name, model))


def load_trained(option: str, name: str, what: str, kind: Any, parts: Sequence[Any]) -> list[Any]:
    """As `load_pretrained` with ``OPTION NAME`` as the label; refuses random weights.

    Raises:
        UserError: not found, not reachable, of another kind, or weights missing or random.
    """
    label = f"{option} {name}"
    loaded = load_pretrained(label, name, what, kind, parts)
    check_trained(loaded[0], label)
    return loaded


def shown_name(name: str, model: Any) -> str:
    """A folder's own name, or the hub name with the commit that the model was loaded from."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve().name
    return used_name(name, commit_of_model(model))


def _pooled(features: Any) -> Tensor:
    """The embedding: transformers 5 wraps it into an output object, 4 gave the tensor itself."""
    result: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return result
