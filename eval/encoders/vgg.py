"""VGG's features: what textures and contents are compared by."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eval.encoders.features import first_line, weights_hash

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VggFeatures(nn.Module):
    """VGG16 or VGG19 of torchvision up to its last convolution, layers by their usual names.

    Args:
        features: the convolutions, keys ``features.*``; the depth is told by their number.

    Raises:
        ValueError: they are neither.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: dict[str, Tensor]) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        self.kind = "vgg19" if "features.34.weight" in features else "vgg16"
        layers = make_layers(cfgs["E" if self.kind == "vgg19" else "D"])
        self.layers = layers[:-1]  # the last pooling is of no use here
        own = {key.split(".", 1)[1]: v for key, v in features.items() if key.startswith("features")}
        try:
            self.layers.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(first_line(error)) from error
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # else the convolution's own output would be lost
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])
        self.requires_grad_(False).eval()

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return {"encoder": self.kind.upper(), "weights": weights_hash(self.layers)}

    @torch.no_grad()
    def forward(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Features {name: [V,C,h,w]} of pictures [V,3,H,W] in [0,1]; names as "relu4_1"."""
        found: dict[str, Tensor] = {}
        x = (images.float() - self.mean) / self.std
        block = place = 1
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                block, place = block + 1, 1
                continue
            kind = "conv" if isinstance(layer, nn.Conv2d) else "relu"
            if f"{kind}{block}_{place}" in names:
                found[f"{kind}{block}_{place}"] = x
            place += kind == "relu"
            if len(found) == len(names):
                break
        return found
