"""Object words to boxes: Grounding DINO, OWLv2 and SAM 3 of transformers, YOLOX by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pseudo_labels.segment import Box, Detection
from pseudo_labels.segment.hub import from_hub, provenance_name
from pseudo_labels.segment.weights import onnx_session
from regionroute.data.images import to_pil
from regionroute.errors import UserError, nearest

DETECTORS = ("grounding-dino", "mm-grounding-dino", "owlvit", "owlv2")
CONCEPT_SEGMENTERS = ("sam3", "sam3_video")
_OVERLAP = 0.6  # IoU above which two boxes of a word are one object
# The 80 object words of COCO, in the order of detectors' outputs.
_COCO_WORDS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire "
    "hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, "
    "snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis "
    "racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, "
    "orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, "
    "toothbrush"
)
COCO_WORDS = tuple(_COCO_WORDS.split(", "))


class HubGrounder:
    """Open-vocabulary detectors of transformers: Grounding DINO, OWL-ViT, OWLv2.

    Args:
        source: hub id (IDEA-Research/grounding-dino-tiny, google/owlv2-base-patch16-ensemble, ...)
            or a local folder.
        threshold: least score of a box.
        device: where the network runs.

    Raises:
        UserError: it is not there, damaged, or no such detector.
    """

    masks = False

    def __init__(
        self, source: str, threshold: float = 0.3, device: str | torch.device = "cpu"
    ) -> None:
        kind = "AutoModelForZeroShotObjectDetection"
        self._processor, model = from_hub(source, kind, "a detector (Grounding DINO or OWLv2)")
        self.model = model.to(device)
        self._threshold = threshold
        self.name = provenance_name(source, model)

    @torch.no_grad()
    def ground(self, image: Tensor, words: Sequence[str]) -> list[list[Detection]]:
        """See `Grounder.ground`; each word is asked for by itself.

        Asked for together, words borrow each other's boxes ("dog cat" for one animal).
        """
        return [self._ask(image, word) for word in words]

    def _ask(self, image: Tensor, word: str) -> list[Detection]:
        size = (image.shape[-2], image.shape[-1])
        text = [[f"{_article(word)} {word.lower()}"]]
        inputs = self._processor(images=to_pil(image), text=text, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        outputs = self.model(**inputs)
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs, threshold=self._threshold, target_sizes=[size]
        )
        return distinct(found["boxes"].cpu(), found["scores"].cpu(), size)


class ConceptGrounder:
    """SAM 3: words straight to masks.

    Args:
        source: hub id (facebook/sam3) or a local folder.
        threshold: least score of a mask.
        device: where the network runs.

    Raises:
        UserError: it is not there, damaged, or not SAM 3.
    """

    masks = True

    def __init__(
        self, source: str, threshold: float = 0.3, device: str | torch.device = "cpu"
    ) -> None:
        self._processor, model = from_hub(source, "Sam3Model", "SAM 3")
        self.model = model.to(device)
        self._threshold = threshold
        self.name = provenance_name(source, model, "sam3")

    @torch.no_grad()
    def ground(self, image: Tensor, words: Sequence[str]) -> list[list[Detection]]:
        """See `Grounder.ground`."""
        picture = to_pil(image)
        device = self.model.device
        pixels = self._processor(images=picture, return_tensors="pt").pixel_values.to(device)
        vision = self.model.get_vision_features(pixel_values=pixels)
        size = (image.shape[-2], image.shape[-1])
        return [self._ask(vision, word, size) for word in words]

    def _ask(self, vision: Any, word: str, size: tuple[int, int]) -> list[Detection]:
        text = self._processor(text=word, return_tensors="pt").to(self.model.device)
        outputs = self.model(
            vision_embeds=vision, input_ids=text.input_ids, attention_mask=text.attention_mask
        )
        (found,) = self._processor.post_process_instance_segmentation(
            outputs, threshold=self._threshold, target_sizes=[size]
        )
        masks = [mask[None].float().cpu() for mask in found["masks"]]
        return distinct(found["boxes"].cpu(), found["scores"].cpu(), size, masks)


class YoloxGrounder:
    """YOLOX (Ge et al., 2021) from an ONNX file: 80 words, a few megabytes, no hub.

    Args:
        weights: the file, exported without decoding as in the authors' releases.
        threshold: least score of a box.

    Raises:
        UserError: the file is missing, damaged or another network.
    """

    masks = False

    def __init__(self, weights: str, threshold: float = 0.3) -> None:
        self._path = Path(weights).expanduser()
        if not self._path.is_file():
            raise UserError(f"{weights}: no such file, give a YOLOX network in ONNX form")
        shape = onnx_session(self._path).get_inputs()[0].shape
        outputs = onnx_session(self._path).get_outputs()[0].shape
        if len(shape) != 4 or len(outputs) != 3 or outputs[2] != 5 + len(COCO_WORDS):
            raise UserError(f"{weights}: this is no YOLOX network for the 80 COCO words")
        self._side = int(shape[2])
        self._threshold = threshold
        self.name = self._path.stem

    def ground(self, image: Tensor, words: Sequence[str]) -> list[list[Detection]]:
        """See `Grounder.ground`; a word that is not among the 80 is a `UserError`."""
        columns = [self._column(word) for word in words]
        boxes, scores = self._detect(image)
        size = (image.shape[-2], image.shape[-1])
        found = []
        for column in columns:
            of_word = scores[:, column]
            # A box counts for its best word only: a cat is not also a poor dog.
            kept = (of_word >= self._threshold) & (of_word == scores.amax(1))
            found.append(distinct(boxes[kept], of_word[kept], size))
        return found

    def _column(self, word: str) -> int:
        if word.lower() not in COCO_WORDS:
            close = nearest(word, COCO_WORDS)
            raise UserError(
                f"'{word}' is none of the 80 words of this grounder, the nearest is '{close}'; use "
                "that, or a grounder that knows any word"
            )
        return COCO_WORDS.index(word.lower())

    def _detect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, 4] as (x0, y0, x1, y1) in pixels and scores [N, 80]."""
        side = self._side
        scale = side / max(image.shape[-2:])
        size = (round(image.shape[-1] * scale), round(image.shape[-2] * scale))
        padded = np.full((side, side, 3), 114, dtype=np.float32)
        padded[: size[1], : size[0]] = np.asarray(to_pil(image).resize(size))[..., ::-1]  # BGR
        session = onnx_session(self._path)
        name = session.get_inputs()[0].name
        (answer, *_) = session.run(None, {name: padded.transpose(2, 0, 1)[None]})
        raw = torch.from_numpy(np.asarray(answer[0], dtype=np.float32))
        grid, stride = _cells(side)
        centre = (raw[:, :2] + grid) * stride
        half = raw[:, 2:4].exp() * stride / 2
        boxes = torch.cat([centre - half, centre + half], dim=1) / scale
        return boxes, raw[:, 4:5] * raw[:, 5:]


def _cells(side: int) -> tuple[Tensor, Tensor]:
    """Corners [N, 2] of the cells at strides 8, 16 and 32, in cells, and their strides [N, 1]."""
    grids, strides = [], []
    for stride in (8, 16, 32):
        count = side // stride
        y, x = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        grids.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        strides.append(torch.full((count * count, 1), stride))
    return torch.cat(grids), torch.cat(strides)


def distinct(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], masks: list[Tensor] | None = None
) -> list[Detection]:
    """One detection an object, the best first.

    Args:
        boxes: [N, 4] as (x0, y0, x1, y1) in pixels, possibly beyond the image.
        scores: [N].
        size: (height, width) of the image.
        masks: N masks [1, H, W] in {0, 1}, or None.

    Returns:
        Detections with whole pixels inside the image; of boxes that cover each other the best.
    """
    from torchvision.ops import nms  # brings torchvision along, which given masks do without

    found = []
    for index in nms(boxes.float(), scores.float(), _OVERLAP).tolist():
        box = _inside(boxes[index], size)
        mask = masks[index] if masks is not None else None
        if box is not None and (mask is None or mask.any()):
            found.append(Detection(box, min(1.0, float(scores[index])), mask))
    return found


def _inside(box: Tensor, size: tuple[int, int]) -> Box | None:
    """Whole pixels of a box within the image, None if nothing is left."""
    height, width = size
    x0, y0 = (max(0, int(value)) for value in box[:2].floor())
    x1, y1 = (int(value) for value in box[2:].ceil())
    x1, y1 = min(width, x1), min(height, y1)
    return (y0, x0, y1, x1) if y1 > y0 and x1 > x0 else None


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"
