"""Questions to a vision-language model about each sample, and captions of photos.

Any image-text-to-text model of transformers that has a chat template serves (Qwen2.5-VL, SmolVLM,
LLaVA, ...). An answer that is neither yes nor no counts against the sample and is counted.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pseudo_labels.segment import Segment
from pseudo_labels.segment.hub import from_hub
from pseudo_labels.segment.weights import fingerprint
from regionroute.data.images import to_pil
from regionroute.errors import UserError
from regionroute.files import read_json, settings_hash, write_json

QUESTIONS = {
    "object": "Does this picture show a {word}?",
    "style": "Is the {word} in this picture drawn in {style} style?",
}
CAPTION = "Describe this picture in one short sentence."
_ORDER = "Answer with yes or no."
_ANSWER = re.compile(r"[^a-z]*(yes|no)\b")
_TOKENS = 48  # of an answer, enough for a sentence
_RIM = 0.15  # of the box's sides, shown around the object


@dataclass(frozen=True)
class JudgeSettings:
    """A judge and what it is asked.

    Attributes:
        model: hub id or local folder of a vision-language model.
        device: where it runs.
        caption: whether photos get a caption as well.
    """

    model: str
    device: str = "cpu"
    caption: bool = False

    def load(self) -> "VisionJudge":
        """The judge, loaded once a process.

        Raises:
            UserError: it cannot be had.
        """
        return _judge(self.model, self.device)

    def fault(self, checks: dict[str, Any]) -> str | None:
        """Why its answers speak against a sample; None: they do not."""
        for name in QUESTIONS:
            answer = checks.get(f"judge_{name}")
            if answer is None:
                return f"the judge gave no clear answer about the {name}"
            if not answer:
                return f"the judge says no to the question about the {name}"
        return None


class VisionJudge:
    """Yes, no, or a sentence about a picture.

    Args:
        source: hub id or local folder.
        device: where the network runs.

    Raises:
        UserError: it is not there, damaged, or has no chat template.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        kind = "AutoModelForImageTextToText"
        self._processor, model = from_hub(source, kind, "a vision-language model")
        if not getattr(self._processor, "chat_template", None):
            raise UserError(f"{source}: this model has no chat template, give one that has")
        self.model = model.to(device)

    def ask(self, image: Tensor, question: str) -> bool | None:
        """Yes or no to a question about a picture [3, H, W]; None for any other answer."""
        found = _ANSWER.match(self.say(image, f"{question} {_ORDER}").lower())
        return None if found is None else found[1] == "yes"

    @torch.no_grad()
    def say(self, image: Tensor, text: str) -> str:
        """The model's answer to a text about a picture [3, H, W] in [0, 1]; nothing random."""
        content = [{"type": "image", "image": to_pil(image)}, {"type": "text", "text": text}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        ids = self.model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)
        told = ids[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.decode(told, skip_special_tokens=True)).strip()


@functools.cache
def _judge(source: str, device: str) -> VisionJudge:
    return VisionJudge(source, device)


def cached_answers(
    out: Path, file: str, target: Tensor, segment: Segment, style: str, settings: JudgeSettings
) -> dict[str, bool | None]:
    """The judge's answers about a sample, asked once.

    Args:
        out: the data set's folder.
        file: the target's name, which changes with its content.
        target: the target [3, H, W].
        segment: the object, whose box is shown with a rim.
        style: the style's words.
        settings: the judge.

    Returns:
        "judge_object" and "judge_style": True, False, or None for an unclear answer.
    """
    asked = {name: text.format(word=segment.word, style=style) for name, text in QUESTIONS.items()}
    key = settings_hash([file, asked, fingerprint(settings.model)])
    record = out / ".cache" / "answers" / f"{key}.json"
    answers = _known(record)
    if answers is None or set(answers) != {f"judge_{name}" for name in asked}:
        crop = _around(target, segment)
        judge = settings.load()
        answers = {f"judge_{name}": judge.ask(crop, text) for name, text in asked.items()}
        write_json(record, answers)
    return answers


def cached_caption(out: Path, context: str, content: Tensor, settings: JudgeSettings) -> str:
    """One sentence about a photo [3, H, W], asked once; `context` is its name in the data set."""
    key = settings_hash([context, CAPTION, fingerprint(settings.model)])
    record = out / ".cache" / "answers" / f"{key}.json"
    known = _known(record)
    if known is None or not isinstance(known.get("caption"), str):
        known = {"caption": " ".join(settings.load().say(content, CAPTION).split())}
        write_json(record, known)
    return str(known["caption"])


def _known(record: Path) -> dict[str, Any] | None:
    if not record.exists():
        return None
    try:
        content = read_json(record)
    except UserError:
        return None  # damaged from outside: ask again
    return content if isinstance(content, dict) else None


def _around(picture: Tensor, segment: Segment) -> Tensor:
    """The object's box with a rim."""
    y0, x0, y1, x1 = segment.box
    dy, dx = round(_RIM * (y1 - y0)), round(_RIM * (x1 - x0))
    return picture[:, max(0, y0 - dy) : y1 + dy, max(0, x0 - dx) : x1 + dx]
