"""Vision networks of other papers' metrics: VGG, DINO, CSD, DreamSim, Inception, aesthetics.

Like those of `eval.encoders.features` each comes from a hub name or a local folder, is hashed, and
is refused when its weights are not trained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.encoders.csd import CsdEncoder, convert_csd
from eval.encoders.extras import dreamsim_network, inception_network
from eval.encoders.features import (
    load_trained,
    read_weights,
    shown_name,
    weights_hash,
)
from eval.encoders.trust import check_features, check_trained, named_by_hash, tensors_hash
from regionroute.data.images import to_pil
from regionroute.errors import UserError, first_line
from regionroute.models.vgg import VggFeatures

DREAMSIM_FILES = (
    "dino_vitb16_pretrain.pth",
    "open_clip_vitb16_pretrain.pth.tar",
    "clip_vitb16_pretrain.pth.tar",
    "ensemble_lora",
    "facebookresearch_dino_main",  # the package takes DINO's code and weights from torch hub
    "checkpoints/dino_vitbase16_pretrain.pth",
)


class ImageEncoder(Protocol):
    """Maps images to embeddings."""

    def encode_image(self, images: Sequence[Tensor]) -> Tensor:
        """V images [3,h,w] in [0,1], sizes may differ, to embeddings [V,D]."""
        ...

    def identity(self) -> dict[str, str]:
        """Name and weight hash, written next to every number made with this encoder."""
        ...


class DinoEncoder:
    """The class token of a DINO or DINOv2 of transformers, with its own preprocessing.

    Args:
        model: gives `last_hidden_state`.
        processor: its image processor.
        name: for the output files.
    """

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.name = name

    @torch.no_grad()
    def encode_image(self, images: Sequence[Tensor]) -> Tensor:
        """V images [3,h,w] in [0,1] to unit vectors [V,D]."""
        pixels = self.processor(images=[to_pil(image) for image in images], return_tensors="pt")
        output = self.model(pixels["pixel_values"].to(self.model.device, self.model.dtype))
        return F.normalize(output.last_hidden_state[:, 0].float(), dim=1)

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return {"encoder": self.name, "weights": weights_hash(self.model)}


class AestheticHead:
    """LAION's aesthetic predictor: linear layers on a unit CLIP embedding, about 1 to 10.

    The published heads (linear, or five layers) have no activations between their layers.

    Args:
        state: their weights and biases, in the order of their numbers.

    Raises:
        ValueError: these are no linear layers one after the other that end in one number.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        names = sorted(
            (key for key in state if key.endswith("weight")),
            key=lambda key: [int(part) for part in key.split(".") if part.isdigit()],
        )
        self.layers = [
            (state[n].float(), state[n[: -len("weight")] + "bias"].float()) for n in names
        ]
        if not self.layers or self.layers[-1][0].shape[0] != 1:
            raise ValueError("it does not end in one number")
        self._state = state

    @property
    def width(self) -> int:
        """Numbers in the embedding it expects."""
        return int(self.layers[0][0].shape[1])

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Scores [V] of unit vectors [V,D].

        Raises:
            UserError: D is another than the head's.
        """
        x = embeddings.float().cpu()
        if x.shape[1] != self.width:
            raise UserError(
                f"--encoder aesthetic: it takes embeddings of {self.width} numbers, --clip gives "
                f"{x.shape[1]}, give the CLIP it was trained on (ViT-L/14)"
            )
        for weight, bias in self.layers:
            x = F.linear(x, weight, bias)
        return x[:, 0]

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return {"encoder": "LAION aesthetic head", "weights": tensors_hash(self._state)}


class VggEncoder:
    """A VGG with the name and hash that stand next to every number made with it.

    Args:
        weights: torchvision's convolutions, keys ``features.*``.

    Raises:
        ValueError: they are not those of a VGG16 or VGG19.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.network = VggFeatures(weights)
        convolutions = {n: w.float() for n, w in weights.items() if n.startswith("features.")}
        own = {name.removeprefix("features."): w for name, w in convolutions.items()}
        self._identity = {"encoder": self.network.kind, "weights": tensors_hash(own)}

    @torch.no_grad()
    def __call__(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Features {name: [V,C,h,w]} of images [V,3,H,W] in [0,1]; names as "relu4_1"."""
        return dict(zip(names, self.network(images.float(), names), strict=True))

    def to(self, device: str | torch.device) -> VggEncoder:
        """Moves the network."""
        self.network.to(device)
        return self

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return self._identity


class DreamSim:
    """The perceptual distance of the dreamsim package (the ensemble of three networks)."""

    def __init__(self, model: nn.Module, preprocess: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self.preprocess = preprocess

    @torch.no_grad()
    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Distances [V] of V pairs [3,h,w] in [0,1], one by one because the package squeezes."""
        device = next(self.model.parameters()).device
        pairs = [
            [self.preprocess(to_pil(picture)).to(device) for picture in pair]
            for pair in zip(a, b, strict=True)
        ]
        return torch.stack([self.model(x, y).reshape(()).float().cpu() for x, y in pairs])

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return {"encoder": "DreamSim ensemble", "weights": weights_hash(self.model)}


class InceptionFeatures:
    """The 2048 numbers on which the Fréchet inception distance is defined."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False).eval()
        self.width = 2048

    @torch.no_grad()
    def encode_image(self, images: Sequence[Tensor]) -> Tensor:
        """V images [3,h,w] in [0,1] to features [V,2048]; the network resizes them itself."""
        device = next(self.network.parameters()).device
        levels = [(image[None] * 255).round().clamp(0, 255).byte().to(device) for image in images]
        return torch.cat([self.network(level)[0].float().cpu() for level in levels])

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return {"encoder": "Inception (FID)", "weights": weights_hash(self.network)}


def load_vgg(place: str, device: str | torch.device = "cpu") -> VggEncoder:
    """VGG16 or VGG19 from a file of torchvision, or the first such file of a folder.

    Raises:
        UserError: no such file, or not torchvision's weights.
    """
    path = find_file("vgg", place, ("*vgg19*", "*vgg16*"))
    features = _tensors("vgg", path)
    try:
        encoder = VggEncoder(features)
    except (ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise UserError(f"--encoder vgg={place}: no VGG16 or VGG19 ({error})") from error
    check_features(encoder.network.kind.lower(), features, path, f"--encoder vgg={place}")
    return encoder.to(device)


def load_dino(place: str, device: str | torch.device = "cpu") -> DinoEncoder:
    """DINO or DINOv2 by hub name or folder.

    Raises:
        UserError: it cannot be loaded or is untrained.
    """
    from transformers import AutoImageProcessor, AutoModel

    model, processor = load_trained(
        "--encoder dino", place, "a DINO", AutoModel, (AutoImageProcessor,)
    )
    return DinoEncoder(model.to(device), processor, shown_name(place, model))


def load_csd(place: str, device: str | torch.device = "cpu") -> CsdEncoder:
    """CSD from its authors' checkpoint (a file, or the first of a folder).

    Raises:
        UserError: no such file, or another network.
    """
    path = find_file("csd", place, ("*.safetensors", "*.pth", "*.bin"))
    state: Any = _tensors("csd", path)
    try:
        model, head = convert_csd(state)
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--encoder csd={place}: no CSD checkpoint ({first_line(error)})"
        ) from error
    check_trained(model, f"--encoder csd={place}")
    return CsdEncoder(model.to(device), head.to(device))


def load_aesthetic(place: str, device: str | torch.device = "cpu") -> AestheticHead:
    """LAION's head from its file; it works on CLIP's embeddings, on the CPU whatever the device.

    Raises:
        UserError: no such file, or another network.
    """
    path = find_file("aesthetic", place, ("*l14*", "*l_14*"))
    try:
        return AestheticHead(_tensors("aesthetic", path))
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"--encoder aesthetic={place}: no such head ({error})") from error


def load_inception(place: str, device: str | torch.device = "cpu") -> InceptionFeatures:
    """The Inception of FID from torch-fidelity's file.

    Raises:
        UserError: no such file, another network, or the package is missing.
    """
    path = find_file("inception", place, ("weights-inception*.pth",))
    try:
        network = inception_network(path)
    except UserError:
        raise
    except Exception as error:  # any class can come out of reading a file that is something else
        raise UserError(
            f"--encoder inception={place}: not torch-fidelity's weights ({first_line(error)})"
        ) from error
    if not named_by_hash(path):
        raise UserError(
            f"--encoder inception={place}: the file's checksum is not the one in its name, give "
            "torch-fidelity's weights-inception-2015-12-05-6726825d.pth as it was downloaded"
        )
    return InceptionFeatures(network.to(device))


def load_dreamsim(place: str, device: str | torch.device = "cpu") -> DreamSim:
    """DreamSim from the folder that its package has filled; nothing is downloaded here.

    Raises:
        UserError: a file of it is missing or damaged, or the package is.
    """
    folder = Path(place).expanduser()
    absent = [name for name in DREAMSIM_FILES if not (folder / name).exists()]
    if absent:
        raise UserError(
            f"--encoder dreamsim={place}: {absent[0]} is not in this folder, fill it once, online: "
            f"python -c \"from dreamsim import dreamsim; dreamsim(cache_dir='{place}', "
            "device='cpu')\""
        )
    try:
        network = DreamSim(*dreamsim_network(folder, str(device)))
    except UserError:
        raise
    except Exception as error:  # any class can come out of reading a file that is something else
        raise UserError(
            f"--encoder dreamsim={place}: cannot be loaded ({first_line(error)})"
        ) from error
    check_trained(network.model, f"--encoder dreamsim={place}")
    return network


def find_file(name: str, place: str, patterns: Sequence[str]) -> Path:
    """The file itself, or the first in a folder that fits a pattern.

    Raises:
        UserError: there is none.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"--encoder {name}={place}: no such file or folder, check the path")
    for pattern in patterns:
        for file in sorted(path.glob(pattern)):
            return file
    raise UserError(f"--encoder {name}={place}: no {' or '.join(patterns)} in this folder")


def _tensors(name: str, path: Path) -> dict[str, Tensor]:
    try:
        state = read_weights(path)
    except OSError:
        raise
    except Exception as error:  # any class can come out of reading a file that is something else
        raise UserError(
            f"--encoder {name}={path}: these are no weights ({first_line(error)})"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"--encoder {name}={path}: these are no weights, give another file")
    return state
