"""Asks a vision-language model yes/no questions about each sample, and for captions of photos.

Any image-text-to-text model of transformers with a chat template that takes two images works
(Qwen2.5-VL, SmolVLM, LLaVA, ...). A sample is kept only if every answer is yes; an answer that is
neither yes nor no rejects it (StyleExpert §4.5: failed stylisation, broken layout, wrong attributes
and changed objects are filtered out).
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pseudo_labels.segment import Segment
from pseudo_labels.segment.hub import from_hub, provenance_name
from pseudo_labels.segment.weights import fingerprint
from regionroute.data.images import to_pil
from regionroute.errors import UserError
from regionroute.files import read_json, settings_hash, write_json

_PAIR = "The first image is a photo, the second is the same photo with its {word} restyled. "
QUESTIONS = {
    "layout": _PAIR + "Is the {word} in the same place, with the same shape and pose, in both?",
    "attributes": _PAIR + "Does the {word} have the same parts and the same attributes, such as "
    "number, age, gender and expression, in both, apart from its style?",
    "identity": _PAIR + "Is the second image still recognisable as the same {word}?",
    "style": _PAIR + "Is the {word} in the second image drawn in {style} style?",
}
# The style is learned from images; a caption that names it would leak it (StyleExpert §4.5).
CAPTION = (
    "Describe the content of this image in one short sentence: objects, their number, poses and "
    "places. Do not mention colours, lighting, mood, medium or artistic style."
)
_INSTRUCTION = "Answer with yes or no."
_ANSWER = re.compile(r"[^a-z]*(yes|no)\b")
_TOKENS = 48  # maximum length of an answer, enough for a sentence
_RIM = 0.15  # margin around the object, as a fraction of the sides of its box


@dataclass(frozen=True)
class JudgeSettings:
    """A judge and its tasks.

    Attributes:
        model: hub id, also ``owner/name@revision``, or local folder of a vision-language model.
        device: where it runs.
        caption: also caption the photos.
    """

    model: str
    device: str = "cpu"
    caption: bool = False

    def load(self) -> "VisionJudge":
        """Load the judge, once per process.

        Raises:
            UserError: it cannot be loaded.
        """
        return _judge(self.model, self.device)

    def fingerprint(self) -> str:
        """What answers depend on: the files of a folder, or the commit loaded from the hub."""
        if Path(self.model).expanduser().exists():
            return fingerprint(self.model)
        return self.load().name

    def fault(self, checks: dict[str, Any]) -> str | None:
        """Why the answers reject a sample; None: they do not."""
        for name in QUESTIONS:
            answer = checks.get(f"judge_{name}")
            if answer is None:
                return f"the judge gave no clear answer about the {name}"
            if not answer:
                return f"the judge says no to the question about the {name}"
        return None


class VisionJudge:
    """A vision-language model that answers questions about images.

    Args:
        source: hub id or local folder.
        device: where the network runs.

    Attributes:
        name: kind and name of the network, with the commit that was loaded.

    Raises:
        UserError: it is missing, damaged, or has no chat template.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        kind = "AutoModelForImageTextToText"
        self._processor, model = from_hub(source, kind, "a vision-language model")
        if not getattr(self._processor, "chat_template", None):
            raise UserError(f"{source}: this model has no chat template, give one that has")
        self.name = provenance_name(source, model)
        self.model = model.to(device)

    def ask(self, images: Sequence[Tensor], question: str) -> bool | None:
        """Answer to a yes/no question about images [3, H, W]; None for any other answer."""
        found = _ANSWER.match(self.say(images, f"{question} {_INSTRUCTION}").lower())
        return None if found is None else found[1] == "yes"

    @torch.no_grad()
    def say(self, images: Sequence[Tensor], text: str) -> str:
        """Greedy answer to a text about images [3, H, W] in [0, 1], in their order."""
        content: list[dict[str, Any]] = [
            {"type": "image", "image": to_pil(image)} for image in images
        ]
        content.append({"type": "text", "text": text})
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        ids = self.model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)
        answer = ids[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.decode(answer, skip_special_tokens=True)).strip()


@functools.cache
def _judge(source: str, device: str) -> VisionJudge:
    return VisionJudge(source, device)


def cached_answers(
    out: Path,
    file: str,
    images: tuple[Tensor, Tensor],
    segment: Segment,
    style: str,
    settings: JudgeSettings,
) -> dict[str, bool | None]:
    """The judge's answers about a sample; each question is asked once and recorded.

    Args:
        out: folder of the data set.
        file: name of the target, which changes with its content.
        images: photo and target, [3, H, W] each.
        segment: the object; both images are cropped around its box.
        style: words of the style.
        settings: the judge.

    Returns:
        "judge_NAME" for every name in `QUESTIONS`: True, False, or None for an unclear answer.
    """
    asked = {name: text.format(word=segment.word, style=style) for name, text in QUESTIONS.items()}
    key = settings_hash([file, asked, settings.fingerprint()])
    record = out / ".cache" / "answers" / f"{key}.json"
    answers = _known(record)
    if answers is None or set(answers) != {f"judge_{name}" for name in asked}:
        crops = [_around(image, segment) for image in images]
        judge = settings.load()
        answers = {f"judge_{name}": judge.ask(crops, text) for name, text in asked.items()}
        write_json(record, answers)
    return answers


def cached_caption(out: Path, context: str, content: Tensor, settings: JudgeSettings) -> str:
    """Caption of a photo [3, H, W], recorded; `context` is its name in the data set."""
    key = settings_hash([context, CAPTION, settings.fingerprint()])
    record = out / ".cache" / "answers" / f"{key}.json"
    known = _known(record)
    if known is None or not isinstance(known.get("caption"), str):
        known = {"caption": " ".join(settings.load().say([content], CAPTION).split())}
        write_json(record, known)
    return str(known["caption"])


def _known(record: Path) -> dict[str, Any] | None:
    if not record.exists():
        return None
    try:
        content = read_json(record)
    except UserError:
        return None  # damaged: ask again
    return content if isinstance(content, dict) else None


def _around(image: Tensor, segment: Segment) -> Tensor:
    """Crop an image to the box of an object with a margin."""
    y0, x0, y1, x1 = segment.box
    dy, dx = round(_RIM * (y1 - y0)), round(_RIM * (x1 - x0))
    return image[:, max(0, y0 - dy) : y1 + dy, max(0, x0 - dx) : x1 + dx]
