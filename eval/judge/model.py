"""The vision-language model that judges: any image-text-to-text model of transformers."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from eval.encoders.features import load_trained, shown_name, weights_hash
from eval.judge.questions import JudgeConfig
from regionroute.data.images import to_pil
from regionroute.errors import UserError
from regionroute.files import text_hash


class VisionLanguageModel(Protocol):
    """Answers a question about images."""

    def answer(self, images: Sequence[Tensor], question: str, config: JudgeConfig) -> str:
        """The words of the answer about images [3,h,w] in [0,1]."""
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
        UserError: it cannot be loaded, is untrained, or cannot be asked about images.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    what = "a vision-language model"
    model, processor = load_trained(
        "--judge", place, what, AutoModelForImageTextToText, (AutoProcessor,)
    )
    if not getattr(processor, "chat_template", None):
        raise UserError(f"--judge {place}: it has no chat template, give an instruction-tuned one")
    return TransformersJudge(model.to(device), processor, shown_name(place, model))
