"""Names of grounders and segmenters, as the command line takes them, and what they load.

grounder    salient[:FILE]            the one salient object (U²-Net-p), for one word
            yolox:FILE                80 words (ONNX)
            FOLDER or hub id          Grounding DINO, OWLv2, SAM 3 of transformers
segmenter   offline[:FILE]            U²-Net-p and GrabCut
            grabcut                   GrabCut alone: no weights at all
            sam:vit_b|vit_l|vit_h     segment-anything, fetched; sam:FILE for a checkpoint
            FOLDER or hub id          SAM 1, 2 or 3 of transformers
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from pseudo_labels.segment import BoxSegmenter, Grounder, check_policy
from pseudo_labels.segment.hub import check_source, model_type
from pseudo_labels.segment.sam import CHECKPOINTS, HubSamSegmenter, SamSegmenter
from pseudo_labels.segment.weights import fingerprint
from regionroute.errors import UserError

DEFAULT_GROUNDER = "IDEA-Research/grounding-dino-tiny"
DEFAULT_SEGMENTER = "facebook/sam2.1-hiera-tiny"
_REVISION = 1  # raise when equal settings would find something else


@dataclass(frozen=True)
class FinderSettings:
    """How objects without masks are found.

    Attributes:
        grounder: finds the boxes of words, see this module; None: words are not looked for.
        segmenter: cuts objects out of their boxes, see this module.
        threshold: least score of a box, 0 to 1.
        instances: which of several objects of a word: all, largest, or a number from the left.
        device: where networks run, e.g. "cuda"; the onnx ones always run on the processor.
    """

    grounder: str | None = None
    segmenter: str = DEFAULT_SEGMENTER
    threshold: float = 0.3
    instances: str = "all"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"the threshold of the grounder is {self.threshold}: use 0 to 1")
        check_policy(self.instances)

    @property
    def heavy(self) -> bool:
        """Whether a network is at work that should not be loaded once a process."""
        light = ("salient", "yolox", "offline", "grabcut")
        return not all(name.split(":")[0] in light for name in self._names())

    def _names(self) -> list[str]:
        return [self.segmenter] if self.grounder is None else [self.grounder, self.segmenter]

    def fingerprint(self) -> str:
        """Changes whenever the same image could give other masks; loads nothing."""
        parts = (_identity(name) for name in self._names())
        return " ".join([f"find {_REVISION} {self.threshold} {self.instances}", *parts])

    def load_grounder(self) -> Grounder:
        """The grounder, loaded once a process.

        Raises:
            UserError: it cannot be had.
        """
        if self.grounder is None:
            raise UserError("no grounder is given that could look for words")
        return _grounder(self.grounder, self.threshold, self.device)

    def load_segmenter(self) -> BoxSegmenter:
        """The segmenter, loaded once a process.

        Raises:
            UserError: it cannot be had.
        """
        return _segmenter(self.segmenter, self.device)


@functools.cache
def _grounder(name: str, threshold: float, device: str) -> Grounder:
    kind, _, source = name.partition(":")
    if kind == "salient":
        from pseudo_labels.segment.salient import SalientGrounder

        return SalientGrounder(source or None)
    # Imported here: detectors bring torchvision along.
    from pseudo_labels.segment import grounding

    if kind == "yolox":
        return grounding.YoloxGrounder(source, threshold)
    found = model_type(name, "a detector (Grounding DINO, OWLv2 or SAM 3)")
    if found in grounding.CONCEPT_SEGMENTERS:
        return grounding.ConceptGrounder(name, threshold, device)
    if found in grounding.DETECTORS:
        return grounding.HubGrounder(name, threshold, device)
    raise UserError(
        f"{name}: this is a {found}; a grounder is one of {', '.join(grounding.DETECTORS)}, sam3"
    )


@functools.cache
def _segmenter(name: str, device: str) -> BoxSegmenter:
    kind, _, source = name.partition(":")
    if kind in ("offline", "grabcut"):
        from pseudo_labels.segment.offline import OfflineSegmenter

        return OfflineSegmenter(source or None, saliency=kind == "offline")
    if kind == "sam" and source:
        return SamSegmenter(source, device)
    if name.endswith(".pth"):
        raise UserError(f"{name}: name a checkpoint of segment-anything as sam:{name}")
    check_source(name, "a segmenter (SAM)")
    return HubSamSegmenter(name, device)


def _identity(name: str) -> str:
    """Name and content of what it loads, where that is a file or folder here."""
    kind, _, source = name.partition(":")
    if kind in ("salient", "offline", "yolox", "sam") and source and source not in CHECKPOINTS:
        return f"{kind} {fingerprint(source) if Path(source).exists() else source}"
    return fingerprint(name)
