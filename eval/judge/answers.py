"""The judge's answers: parsed, stored word for word, never asked for twice.

An answer without a clear verdict is counted as unclear and makes no number.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.judge.model import VisionLanguageModel
from eval.judge.questions import VERDICTS, JudgeConfig
from regionroute.files import settings_hash, text_hash
from regionroute.remote import grown


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
            images: images [3,h,w] in [0,1].
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
        grown(self.log)

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
