"""Frozen joint encoders of images and styles.

`JointEncoder` is SigLIP or CLIP, with styles in words. `GramEncoder` is VGG, with styles as images:
directions are between Gram statistics. The losses are the same.

Shapes: B images, K width of an embedding, C width of a summary.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from regionroute.data.images import read_image
from regionroute.errors import UserError
from regionroute.hub_names import commit_of_model, used_name
from regionroute.models.vgg import VggFeatures
from regionroute.pretrained import load_pretrained

RANDOM = "random"  # name of small networks with random weights
NEUTRAL = "a photo"
TEMPLATES = (
    "{}",
    "a picture of {}",
    "an image of {}",
    "a bad photo of {}",
    "a cropped photo of {}",
    "a good photo of {}",
    "a rendition of {}",
)
GRAM_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1")


@dataclass(frozen=True)
class StyleTarget:
    """A style in the space of an encoder.

    Attributes:
        name: the words, or the image's file name.
        embedding: embedding of the style, [K].
        neutral: embedding of an unstyled image, [K]; None: that of the photo.
    """

    name: str
    embedding: Tensor
    neutral: Tensor | None = None

    def direction(self, source: Tensor) -> Tensor:
        """ΔT for photos with embeddings [B, K]: from neutral to the style, length 1, [B, K]."""
        start = source if self.neutral is None else self.neutral.expand_as(source)
        return F.normalize(self.embedding - start, dim=-1)


class StyleEncoder(Protocol):
    """Embeds images and styles in one space.

    Attributes:
        width: C, width of a summary.
        facts: name, hash of the weights, whether they are random, and how styles are given,
            "words" or "pictures" (key ``takes``).
    """

    width: int
    facts: dict[str, Any]

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to [B, K] of length 1; differentiable."""
        ...

    def target(self, style: str) -> StyleTarget:
        """Target of a style, given by words or by the file name of an image."""
        ...

    def summarise(self, vectors: Tensor) -> Tensor:
        """Linear map [B, K] -> [B, C]: the part of a vector that the fusion module gets."""
        ...


def describe(
    encoder: StyleEncoder, target: StyleTarget, source: Tensor, style_input: str
) -> Tensor:
    """Style input of the fusion module, each part with root mean square 1 (or all zeros).

    Unit vectors would be small compared with the biases of the first layer.

    Args:
        encoder: the encoder.
        target: the style.
        source: embeddings of the photos [B, K]; their mean direction is used.
        style_input: "text" (the style's embedding), "direction" or "both".

    Returns:
        [C] or, for both, [2C].
    """
    position = _rms_normalized(encoder.summarise(target.embedding[None])[0])
    direction = _rms_normalized(
        encoder.summarise(target.direction(source).mean(0, keepdim=True))[0]
    )
    return {
        "text": position,
        "direction": direction,
        "both": torch.cat([position, direction]),
    }[style_input]


def _rms_normalized(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=-1) * vector.shape[-1] ** 0.5


def weights_hash(module: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 over a network's weights."""
    state = {name: value.contiguous().cpu() for name, value in module.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()[:16]


class JointEncoder:
    """SigLIP or CLIP with differentiable preprocessing; styles are given in words.

    Args:
        model: a transformers model with `get_image_features` and `get_text_features`.
        tokenize: maps texts to keyword arguments of the model. SigLIP needs padding to its full
            length, as in its training.
        mean: mean of the channels in the preprocessing.
        std: their standard deviation.
        name: its name in `facts`.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Callable[[Sequence[str]], Mapping[str, Tensor]],
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self._tokenize, self._mean, self._std = tokenize, list(mean), list(std)
        self._side = model.config.vision_config.image_size
        self.facts = {
            "name": name,
            "weights": weights_hash(model),
            "random": name == RANDOM,
            "takes": "words",
        }
        self.width = self.embed(torch.zeros(1, 3, self._side, self._side)).shape[1]

    def embed(self, images: Tensor) -> Tensor:
        """See `StyleEncoder.embed`; images are resized to the model's square."""
        side = (self._side, self._side)
        if images.shape[-2:] != side:
            images = F.interpolate(images, side, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self._mean, self._std))
        pixels = ((images - mean) / std).to(self.model.device, self.model.dtype)
        features = self.model.get_image_features(pixel_values=pixels)
        return F.normalize(_pooled(features).float(), dim=-1)

    @torch.no_grad()
    def embed_words(self, words: str) -> Tensor:
        """Mean text embedding over `TEMPLATES`, of length 1: [K]."""
        tokens = self._tokenize([template.format(words) for template in TEMPLATES])
        features = self.model.get_text_features(
            **{name: value.to(self.model.device) for name, value in tokens.items()}
        )
        return F.normalize(F.normalize(_pooled(features).float(), dim=-1).mean(0), dim=-1)

    def target(self, style: str) -> StyleTarget:
        """See `StyleEncoder.target`; the neutral words are "a photo".

        Raises:
            UserError: the words are empty or neutral.
        """
        if not style.strip():
            raise UserError("the style's words are empty: describe the style, e.g. 'woodcut'")
        if style.strip().lower() in (NEUTRAL, "photo"):
            raise UserError(f"'{style}' is the neutral style: describe another one")
        return StyleTarget(style, self.embed_words(style), self.embed_words(NEUTRAL))

    def summarise(self, vectors: Tensor) -> Tensor:
        """The vectors themselves."""
        return vectors


class GramEncoder:
    """Concatenated Gram matrices of VGG features, each of length 1; styles are images.

    Replaces a joint encoder where no SigLIP or CLIP is available: ΔT is the difference between the
    statistics of the style image and those of the photo.

    Args:
        vgg: the network.
        name: its name in `facts`.
        side: shorter side of style images in pixels, so that their strokes have the scale of the
            photos.
    """

    def __init__(self, vgg: VggFeatures, name: str, side: int) -> None:
        self.vgg, self._side = vgg, side
        self.facts = {
            "name": name,
            "weights": weights_hash(vgg),
            "random": False,
            "takes": "pictures",
        }
        self._channels = [vgg.channels(layer) for layer in GRAM_LAYERS]
        self.width: int = sum(self._channels)

    def embed(self, images: Tensor) -> Tensor:
        """See `StyleEncoder.embed`."""
        parts = []
        for features in self.vgg(images, GRAM_LAYERS):
            flat = F.relu(features).flatten(2)
            gram = (flat @ flat.mT).flatten(1)
            parts.append(F.normalize(gram, dim=-1))
        return torch.cat(parts, 1) / len(parts) ** 0.5

    @torch.no_grad()
    def target(self, style: str) -> StyleTarget:
        """See `StyleEncoder.target`: an image's file name.

        Raises:
            UserError: not an image.
        """
        picture = read_image(style)[None]
        scale = self._side / min(picture.shape[-2:])
        size = [max(1, round(side * scale)) for side in picture.shape[-2:]]
        picture = F.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 1)
        device = next(self.vgg.parameters()).device
        return StyleTarget(Path(style).name, self.embed(picture.to(device))[0])

    def summarise(self, vectors: Tensor) -> Tensor:
        """The diagonals: the energy of each channel."""
        blocks = vectors.split([count * count for count in self._channels], dim=-1)
        return torch.cat(
            [block[..., :: n + 1] for block, n in zip(blocks, self._channels, strict=True)], -1
        )


def load_encoder(name: str, device: torch.device | str = "cpu") -> JointEncoder:
    """Load SigLIP or CLIP by folder or hub id; `RANDOM` gives a small one with random weights.

    Raises:
        UserError: not found, not an image-text model, or weights missing.
    """
    if name == RANDOM:
        encoder = random_encoder()
        encoder.model.to(device)
        return encoder
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model, processor, tokenizer = load_pretrained(
        f"--encoder {name}", name, "a SigLIP or CLIP", AutoModel,
        (AutoImageProcessor, AutoTokenizer),
    )  # fmt: skip
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(f"--encoder {name}: this is no image-text model, give a SigLIP or CLIP")
    length = model.config.text_config.max_position_embeddings

    def tokenize(texts: Sequence[str]) -> Mapping[str, Tensor]:
        tokens: Mapping[str, Tensor] = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return tokens

    folder = Path(name).expanduser()
    used = used_name(name, commit_of_model(model))
    label = folder.resolve().name if folder.is_dir() else used
    mean, std = processor.image_mean, processor.image_std
    return JointEncoder(model.to(device), tokenize, mean, std, label)


def random_encoder() -> JointEncoder:
    """A SigLIP of the real class with random weights, for tests and dry runs."""
    from transformers import SiglipConfig, SiglipModel

    length, size = 64, {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = size | {"num_attention_heads": 2, "vocab_size": 258, "max_position_embeddings": length}
    vision = size | {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = SiglipConfig(text_config=text, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiglipModel(config)
        # The initialisation of transformers gives nearly equal embeddings for all images.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def tokenize(texts: Sequence[str]) -> Mapping[str, Tensor]:
        rows = [[byte + 2 for byte in text.encode()[: length - 1]] + [1] for text in texts]
        return {"input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows])}

    return JointEncoder(model, tokenize, (0.5,) * 3, (0.5,) * 3, RANDOM)


def _pooled(features: Any) -> Tensor:
    """The embedding: transformers 5 returns it in an output object, 4 as a tensor."""
    result: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return result
