"""Segment Anything from boxes: the `segment-anything` package, and SAM 1, 2 and 3 of transformers.

Either way the image encoder, nearly all of the work, runs once per image for all its boxes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pseudo_labels.segment import Box
from pseudo_labels.segment.hub import from_hub, provenance_name
from pseudo_labels.segment.weights import WeightsFile, find_weights
from regionroute.data.images import to_pil
from regionroute.errors import UserError

_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
CHECKPOINTS = {
    name: WeightsFile(f"sam_{name}_{md5}.pth", f"{_URL}sam_{name}_{md5}.pth", md5)
    for name, md5 in (("vit_b", "01ec64"), ("vit_l", "0b3195"), ("vit_h", "4b8939"))
}
_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


class SamSegmenter:
    """Any checkpoint of the `segment-anything` package.

    Args:
        checkpoint: vit_b, vit_l or vit_h (fetched if it is not here), or the path of a file; which
            of the three it holds is read from it.
        device: where the network runs.

    Raises:
        UserError: the file is missing, damaged or of another network.
    """

    def __init__(self, checkpoint: str, device: str | torch.device = "cpu") -> None:
        known = CHECKPOINTS.get(checkpoint)
        path = find_weights(known) if known else Path(checkpoint).expanduser()
        if not path.is_file():
            raise UserError(
                f"{checkpoint}: no such SAM checkpoint; give a .pth file or one of "
                f"{', '.join(CHECKPOINTS)}"
            )
        kind, weights = _read_checkpoint(path)
        self.predictor = _predictor(_build(kind, weights, path).to(device))
        self.name = f"sam {kind}"

    @torch.no_grad()
    def segment(self, image: Tensor, boxes: Sequence[Box]) -> list[tuple[Tensor, float]]:
        """See `BoxSegmenter.segment`; scores are the network's own guess of its IoU."""
        if not boxes:
            return []
        self.predictor.set_image(np.asarray(to_pil(image)))
        size = (image.shape[-2], image.shape[-1])
        corners = torch.tensor([_xyxy(box) for box in boxes], device=self.predictor.device)
        prompts = self.predictor.transform.apply_boxes_torch(corners, size)
        masks, scores, _ = self.predictor.predict_torch(None, None, prompts, multimask_output=False)
        self.predictor.reset_image()
        return _results(masks[:, 0], scores[:, 0])

    @torch.no_grad()
    def segment_point(self, image: Tensor, point: tuple[int, int]) -> Tensor:
        """The mask [1, H, W] in {0, 1} at a point (y, x): the best of the network's three."""
        self.predictor.set_image(np.asarray(to_pil(image)))
        masks, scores, _ = self.predictor.predict(
            np.array([point[::-1]]), np.array([1]), multimask_output=True
        )
        self.predictor.reset_image()
        return torch.from_numpy(masks[int(scores.argmax())])[None].float()


class HubSamSegmenter:
    """SAM, SAM 2, SAM 3 or another mask generator of transformers.

    Args:
        source: hub id (facebook/sam2.1-hiera-tiny, facebook/sam3, ...) or a local folder.
        device: where the network runs.

    Raises:
        UserError: it is not there, damaged, or no mask generator.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        self._processor, model = from_hub(source, "AutoModelForMaskGeneration", "a segmenter (SAM)")
        self.model = model.to(device)
        self.name = provenance_name(source, model)

    @torch.no_grad()
    def segment(self, image: Tensor, boxes: Sequence[Box]) -> list[tuple[Tensor, float]]:
        """See `BoxSegmenter.segment`; scores are the network's own guess of its IoU."""
        if not boxes:
            return []
        corners = [[float(value) for value in _xyxy(box)] for box in boxes]
        masks, scores = self._predict(image, False, input_boxes=[corners])
        return _results(masks[:, 0], scores[:, 0])

    @torch.no_grad()
    def segment_point(self, image: Tensor, point: tuple[int, int]) -> Tensor:
        """The mask [1, H, W] in {0, 1} at a point (y, x): the best of the network's three."""
        at = [[[[float(point[1]), float(point[0])]]]]
        masks, scores = self._predict(image, True, input_points=at, input_labels=[[[1]]])
        return masks[0, int(scores[0].argmax())][None].float().cpu()

    def _predict(self, image: Tensor, several: bool, **prompt: Any) -> tuple[Tensor, Tensor]:
        """Masks [N, M, H, W] and scores [N, M] of N prompts, M = 3 if there may be several."""
        inputs = self._processor(images=to_pil(image), return_tensors="pt", **prompt)
        sizes = {
            key: inputs.pop(key)
            for key in ("original_sizes", "reshaped_input_sizes")
            if key in inputs
        }
        inputs = {key: _single(value).to(self.model.device) for key, value in inputs.items()}
        out = self.model(**inputs, multimask_output=several)
        masks = self._processor.post_process_masks(out.pred_masks.cpu(), **sizes)[0]
        return masks, out.iou_scores[0]


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _xyxy(box: Box) -> tuple[int, int, int, int]:
    return box[1], box[0], box[3], box[2]


def _results(masks: Tensor, scores: Tensor) -> list[tuple[Tensor, float]]:
    """Masks [N, H, W] and scores [N] in the protocol's form."""
    return [
        (mask[None].float().cpu(), min(1.0, max(0.0, float(score))))
        for mask, score in zip(masks, scores, strict=True)
    ]


def _read_checkpoint(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Which of the three networks a file holds, and its weights."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        width = weights["image_encoder.pos_embed"].shape[-1]
        return _WIDTHS[width], weights
    except Exception as error:  # unpickling fails in any way it likes
        raise UserError(
            f"{path}: this is no checkpoint of SAM ViT-B, ViT-L or ViT-H, or it is damaged; get "
            f"one from {CHECKPOINTS['vit_b'].url}"
        ) from error


def _build(kind: str, weights: dict[str, Tensor], path: Path) -> Any:
    try:
        from segment_anything import sam_model_registry
    except ImportError as error:
        raise UserError(
            "this segmenter needs the package segment-anything: pip install 'regionroute[label]'"
        ) from error
    model = sam_model_registry[kind]()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit SAM {kind}, fetch it again") from error
    return model.eval().requires_grad_(False)


def _predictor(model: Any) -> Any:
    from segment_anything import SamPredictor

    return SamPredictor(model)
