"""What the judge is asked: the paper's four questions and StyleExpert's verdict, as settings."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from eval.judge.opposites import (
    ALTERNATIVE_OPPOSITE,
    DEFAULT_OPPOSITE,
    OPPOSITES,
    in_table,
    looks_like_a_photo,
    opposite_of,
)
from regionroute.config.io import load_config

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
        description="about the edited image; yes is good",
    )
    q2: str = Field(
        f"Is the background of this picture, everything but the {{object}}, in {{style}} style? "
        f"{_SHORT}",
        description="about the edited image; yes is bad",
    )
    q3: str = Field(
        f"Is the {{object}} in this picture in {{opposite}} style? {_SHORT}",
        description="about the edited image; yes is bad",
    )
    q4: str = Field(
        f"Is the background of this picture, everything but the {{object}}, in {{opposite}} style? "
        f"{_SHORT}",
        description="about the edited image; yes is bad",
    )
    semantic: str = Field(
        "The first picture is a style reference, the second was made in its style. Which of the "
        "reference's style does the second picture carry: its textures, strokes and materials "
        "(answer: semantic), only its colors (answer: color), or nothing of it (answer: neither)? "
        "Answer with one word.",
        description="about a style image and the edited object; our own wording, because the "
        "paper's is not public: not comparable with published values",
    )
    opposites: dict[str, str] = Field(
        OPPOSITES,
        description="style -> the style that questions 3 and 4 ask about; never photographic, "
        "because an unedited background must get a no. Spelling, case and hyphens do not matter",
    )
    default_opposite: str = Field(
        DEFAULT_OPPOSITE, description="for styles outside the table; not photographic either"
    )
    alternative_opposite: str = Field(
        ALTERNATIVE_OPPOSITE,
        description="for styles outside the table that have a word in common with the default",
    )
    temperature: float = Field(0.0, ge=0, description="0: always the likeliest word")
    seed: int = Field(0, ge=0, description="of the draws when the temperature is above 0")
    max_new_tokens: int = Field(16, ge=1, description="the longest answer")

    def opposite(self, style_name: str) -> str:
        """The opposite of a style by its name."""
        return opposite_of(
            style_name, self.opposites, self.default_opposite, self.alternative_opposite
        )

    def question(self, name: str, object_word: str, style: str, style_name: str) -> str:
        """The text of a question.

        Args:
            name: of the question, see `VERDICTS`.
            object_word: the object's word.
            style: the style's phrase in the prompt.
            style_name: the style's name in the manifest, which decides its opposite.
        """
        text: str = getattr(self, name)
        values = {"object": object_word, "style": style, "opposite": self.opposite(style_name)}
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", value)
        return text

    def warnings(self, styles: Iterable[str]) -> list[str]:
        """One sentence for each style whose opposite is a guess or describes an unedited photo."""
        found = []
        for style in sorted(set(styles)):
            opposite = self.opposite(style)
            if looks_like_a_photo(opposite):
                found.append(
                    f"judge: the opposite of {style!r} is {opposite!r}, which describes an "
                    "unedited photo: question 4 counts a perfectly kept background as an error"
                )
            elif not in_table(style, self.opposites):
                found.append(
                    f"judge: {style!r} has no opposite in the table, questions 3 and 4 ask about "
                    f"{opposite!r} (set `opposites` in --judge-config)"
                )
        return found


def load_judge_config(path: str | None) -> JudgeConfig:
    """The settings of a YAML file, or the defaults.

    Raises:
        UserError: the file is missing, no YAML, or has an unknown or wrong key.
    """
    return load_config(path, [], JudgeConfig)
