"""Asks a vision-language model about edits: the paper's four questions and StyleExpert's verdict.

Every answer is stored word for word. One that holds no clear verdict is counted as such and made
into no number.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from eval.encoders.features import open_pretrained, shown_name, weights_hash
from regionroute.config.io import load_config
from regionroute.data.images import to_pil
from regionroute.errors import UserError
from regionroute.files import settings_hash, text_hash

QUESTIONS = ("q1", "q2", "q3", "q4")
SEMANTIC = "semantic"
VERDICTS = {name: ("yes", "no") for name in QUESTIONS} | {
    SEMANTIC: ("semantic", "color", "neither")
}
_SHORT = "Answer with one word, yes or no."


class JudgeConfig(BaseModel):
    """How the judge is asked. In the prompts {object}, {style} and {opposite} are filled in."""

    model_config = ConfigDict(extra="forbid")

    q1: str = Field(
        f"Is the {{object}} in this picture in {{style}} style? {_SHORT}",
        description="about the edited picture; yes is good",
    )
    q2: str = Field(
        f"Is the background of this picture, everything but the {{object}}, in {{style}} style? "
        f"{_SHORT}",
        description="about the edited picture; yes is bad",
    )
    q3: str = Field(
        f"Is the {{object}} in this picture in {{opposite}} style? {_SHORT}",
        description="about the edited picture; yes is bad",
    )
    q4: str = Field(
        f"Is the background of this picture, everything but the {{object}}, in {{opposite}} style? "
        f"{_SHORT}",
        description="about the edited picture; yes is bad",
    )
    semantic: str = Field(
        "The first picture is a style reference, the second was made in its style. Which of the "
        "reference's style does the second picture carry: its textures, strokes and materials "
        "(answer: semantic), only its colors (answer: color), or nothing of it (answer: neither)? "
        "Answer with one word.",
        description="about a picture of the style and the edited object; our own wording, because "
        "the paper's is not public: not comparable with published values",
    )
    opposites: dict[str, str] = Field(
        {
            "pixel-art": "smooth high-resolution photographic",
            "line-art": "richly coloured oil-painting",
            "cyberpunk": "rural pastel watercolour",
            "expressionism": "photorealistic",
            "sketch": "richly coloured oil-painting",
            "watercolor": "glossy 3D-render",
        },
        description="style -> the style that questions 3 and 4 ask about",
    )
    default_opposite: str = Field(
        "photorealistic", description="for styles that are not in the table"
    )
    temperature: float = Field(0.0, ge=0, description="0: always the likeliest word")
    seed: int = Field(0, ge=0, description="of the draws when the temperature is above 0")
    max_new_tokens: int = Field(16, ge=1, description="the longest answer")

    def question(self, name: str, object_word: str, style: str, style_name: str) -> str:
        """The words of a question about an object; its style by phrase and by name."""
        opposite = self.opposites.get(style_name, self.default_opposite)
        text: str = getattr(self, name)
        for key, value in (("object", object_word), ("style", style), ("opposite", opposite)):
            text = text.replace(f"{{{key}}}", value)
        return text


def load_judge_config(path: str | None) -> JudgeConfig:
    """The settings of a YAML file, or the usual ones.

    Raises:
        UserError: the file is missing, no YAML, or has an unknown or wrong key.
    """
    return load_config(path, [], JudgeConfig)


class VisionLanguageModel(Protocol):
    """Answers a question about pictures."""

    def answer(self, images: Sequence[Tensor], question: str, config: JudgeConfig) -> str:
        """The words of the answer about pictures [3,h,w] in [0,1]."""
        ...

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        ...


class TransformersJudge:
    """Any image-text-to-text model of transformers that has a chat template.

    Args:
        model: the model.
        processor: its processor.
        name: for the output files.
    """

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.name = name
        self._identity = {"encoder": name, "weights": weights_hash(model)}

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], question: str, config: JudgeConfig) -> str:
        """The answer; the draws at a temperature depend on the seed and the question alone."""
        content = [{"type": "image", "image": to_pil(image)} for image in images]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        drawn = {"do_sample": True, "temperature": config.temperature, "top_p": 1.0, "top_k": 0}
        how: dict[str, Any] = drawn if config.temperature > 0 else {"do_sample": False}
        with torch.random.fork_rng():
            torch.manual_seed(config.seed + int(text_hash(question)[:8], 16))
            made = self.model.generate(**inputs, **how, max_new_tokens=config.max_new_tokens)
        words = made[:, inputs["input_ids"].shape[1] :]
        answer: str = self.processor.batch_decode(words, skip_special_tokens=True)[0]
        return answer.strip()

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        return self._identity


def load_judge(place: str, device: str | torch.device = "cpu") -> TransformersJudge:
    """A judge by hub name or local folder.

    Raises:
        UserError: it cannot be loaded, is untrained, or cannot be asked about pictures.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = open_pretrained(
        "--judge", place, AutoModelForImageTextToText, (AutoProcessor,)
    )
    if not getattr(processor, "chat_template", None):
        raise UserError(f"--judge {place}: it has no chat template, give an instruction-tuned one")
    return TransformersJudge(model.to(device), processor, shown_name(place))


def parse_verdict(answer: str, choices: Sequence[str]) -> str | None:
    """The verdict in an answer, None where it is not clear.

    It is the choice that the answer begins with, else the only one of them that occurs.
    """
    words = re.findall(r"[a-z]+", answer.lower().replace("colour", "color"))
    if words and words[0] in choices:
        return words[0]
    found = {word for word in words if word in choices}
    return found.pop() if len(found) == 1 else None


class Judge:
    """Asks, stores and remembers.

    Args:
        model: who answers.
        config: how it is asked.
        log: file of JSON lines that gets every answer, and from which earlier ones are taken.
    """

    def __init__(self, model: VisionLanguageModel, config: JudgeConfig, log: Path | None) -> None:
        self.model = model
        self.config = config
        self.log = log
        self._own = settings_hash(self.identity())
        self._known: dict[str, str] = {}
        self._verdicts: dict[tuple[str, ...], str | None] = {}
        for line in log.read_text("utf-8").splitlines() if log and log.is_file() else []:
            try:
                entry = json.loads(line)
                if not isinstance(entry["answer"], str):
                    continue
                self._known[entry["key"]] = entry["answer"]
                if entry["judge"] == self._own:
                    self._verdicts[_place(entry)] = entry["verdict"]
            # Cut off when a run was killed, or not ours: the question is asked again.
            except (ValueError, KeyError, TypeError, RecursionError):
                continue

    def ask(
        self, name: str, where: dict[str, Any], images: Sequence[Tensor], text: str
    ) -> str | None:
        """A question's verdict, None where the answer holds none.

        Args:
            name: of the question, see `VERDICTS`.
            where: sample, method and region, for the log.
            images: pictures [3,h,w] in [0,1].
            text: the question.
        """
        pixels = [(image * 255).round().byte().cpu().contiguous() for image in images]
        shown = [
            settings_hash([list(p.shape), text_hash(p.numpy().tobytes().hex())]) for p in pixels
        ]
        key = settings_hash([self._own, shown, text])
        if key not in self._known:
            self._known[key] = self.model.answer(images, text, self.config)
        answer = self._known[key]
        verdict = parse_verdict(answer, VERDICTS[name])
        entry = {"key": key, "question": name, "judge": self._own, **where}
        if _place(entry) not in self._verdicts:
            self._verdicts[_place(entry)] = verdict
            self._write({**entry, "text": text, "answer": answer, "verdict": verdict})
        return verdict

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log is None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def counts(self) -> dict[str, dict[str, int]]:
        """For each question how many answers this judge gave, and how many are unclear."""
        found: dict[str, dict[str, int]] = {}
        for place, verdict in self._verdicts.items():
            entry = found.setdefault(place[1], {"answers": 0, "unparsable": 0})
            entry["answers"] += 1
            entry["unparsable"] += verdict is None
        return dict(sorted(found.items()))

    def identity(self) -> dict[str, str]:
        """Model, weight hash and a hash of everything that shapes the answers."""
        return {**self.model.identity(), "settings": settings_hash(self.config)}


def _place(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(name)) for name in ("key", "question", "id", "method", "region"))


def rate(verdict: str | None, counted: str) -> float:
    """1 where the verdict is the one counted, 0 for another, NaN for none."""
    return float("nan") if verdict is None else float(verdict == counted)
