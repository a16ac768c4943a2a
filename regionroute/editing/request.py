"""What an edit is asked to do and what it gives.

How its words become a prompt, an expert and token positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from regionroute.config.sites import Word
from regionroute.data.prompts import (
    Prompt,
    Span,
    build_prompt,
    find_spans,
    parse_marked,
    with_style,
)
from regionroute.editing.styles import Look, Styles
from regionroute.errors import UserError
from regionroute.routing.instances import INSTANCES, Instance

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["plain", "routed"]
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_STEPS = 1000  # the scheduler knows no more


@dataclass(frozen=True)
class EditRequest:
    """What to do with one picture.

    Attributes:
        object: word or phrase for the object; may be empty if ``prompt`` marks it.
        style: name or phrase of the style, or a blend ("0.6 pixel-art + 0.4 line-art"); may be
            empty if ``prompt`` marks it or a picture shows it.
        prompt: None for the template; else own words, with the phrases marked ("turn the [dog]
            into {pixel-art}") or standing in it once, or a prompt with its spans.
        seed: of the noise.
        also: further (object, style) pairs of the same picture.
        regions: where each pair acts, [H,W] in [0,1] of the picture's size, in place of the
            model's own maps; empty: the model decides.
        style_images: an example picture [3,H,W] in [0,1] of each pair's style, in place of its
            word; empty: the words say it.
    """

    object: str
    style: str
    prompt: str | Prompt | None = None
    seed: int = 0
    also: tuple[tuple[str, str], ...] = ()
    regions: tuple[Tensor, ...] = ()
    style_images: tuple[Tensor, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (object, style) pairs: as given, or as a prompt marks them when none is given."""
        given = self.object.strip() or self.style.strip() or self.also
        if given or not isinstance(self.prompt, str) or not _is_marked(self.prompt):
            return [(self.object, self.style), *self.also]
        marked = parse_marked(self.prompt)
        spans = zip(marked.object_spans, marked.style_spans, strict=True)
        return [(marked.text[slice(*o)], marked.text[slice(*s)]) for o, s in spans]


@dataclass
class EditResult:
    """An edited picture.

    Attributes:
        image: [3,H,W] float32 in [0,1] on the CPU, the size of the input.
        region_map: [h,w] in [0,1] on the CPU, where the words drew attention, 0.5 is the
            boundary; None unless asked for.
        prompt: the text that was encoded.
        settings: everything that is needed to make the picture again, JSON-able.
    """

    image: Tensor
    region_map: Tensor | None
    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EditOptions:
    """How pictures are edited; None: what was measured best for the experts.

    Attributes:
        steps: model calls.
        guidance: strength told to guidance-distilled bases, or of classifier-free guidance.
        mode: "plain" tells the model the whole prompt, as the paper does; "routed" lets the map of
            each (object, style) pair decide where its style acts, see `regionroute.routing.gates`.
        lock_background: outside the region the picture stays bit for bit.
        strength: of the style inside the region, in [0,1]; below 1 only routed.
        instance: which of several objects of a word, see `regionroute.routing.instances`; routed.
        closer: restyle the objects of pictures that are larger than the model sees them in a
            window of their own, see `regionroute.editing.refine_crop`; with a locked background.
    """

    steps: int | None = None
    guidance: float | None = None
    mode: Mode | None = None
    lock_background: bool | None = None
    strength: float = 1.0
    instance: Instance = "all"
    closer: bool | None = None

    def resolved(
        self, *, steps: int, guidance: float, mode: Mode, closer: bool = False
    ) -> EditOptions:
        """The options with nothing left open: those given here stand for None.

        Raises:
            UserError: a value out of range, or one that the mode has no use for.
        """
        chosen = self.mode or mode
        if chosen not in MODES:
            raise UserError(f"mode {chosen!r}: must be one of {', '.join(MODES)}")
        if not (0 <= self.strength <= 1):
            raise UserError(f"strength {self.strength}: must be between 0 and 1")
        if chosen == "plain" and self.strength != 1:
            raise UserError("a strength below 1 needs mode routed")
        if self.instance not in INSTANCES:
            raise UserError(f"instance {self.instance!r}: must be one of {', '.join(INSTANCES)}")
        if chosen == "plain" and self.instance != "all":
            raise UserError(f"instance {self.instance} needs mode routed")
        steps = steps if self.steps is None else self.steps
        guidance = guidance if self.guidance is None else self.guidance
        if not 1 <= steps <= MAX_STEPS:
            raise UserError(f"steps {steps}: must be between 1 and {MAX_STEPS}")
        if not (math.isfinite(guidance) and guidance >= 0):
            raise UserError(f"guidance {guidance}: must be 0 or more")
        lock = chosen == "routed" if self.lock_background is None else self.lock_background
        able = chosen == "routed" and lock
        if self.closer and not able:
            raise UserError("a closer look needs mode routed and a locked background")
        closer = able and (closer if self.closer is None else self.closer)
        return EditOptions(steps, guidance, chosen, lock, self.strength, self.instance, closer)


@dataclass(frozen=True)
class EditPlan:
    """A request that has been checked.

    Attributes:
        object: the object's phrase.
        look: the style.
        prompt: what is encoded, with the spans of this pair first.
        seed: of the noise.
        style_tokens: positions of the style phrase among the encoded tokens.
        object_tokens: those of the object phrase.
    """

    object: str
    look: Look
    prompt: Prompt
    seed: int
    style_tokens: list[int]
    object_tokens: list[int]

    def tokens(self, word: Word) -> list[int]:
        """Positions of one of the two phrases."""
        return self.object_tokens if word == "object" else self.style_tokens

    @property
    def style_words(self) -> str:
        """The style as the prompt says it."""
        return self.prompt.text[slice(*self.prompt.style_spans[0])]


def plan_clauses(
    request: EditRequest,
    styles: Styles,
    find: Callable[[str, Span], list[int]],
) -> list[EditPlan]:
    """One plan for each (object, style) pair of a request; arguments as of `plan_edit`.

    Several pairs get a prompt each, of the template: a map is read from its own clause.

    Raises:
        UserError: see `plan_edit`; or not one region, or not one example picture for each pair.
    """
    pairs = request.pairs
    if request.regions and len(request.regions) != len(pairs):
        raise UserError(
            f"{len(request.regions)} region maps for {len(pairs)} objects: give one for each"
        )
    if request.style_images and len(request.style_images) != len(pairs):
        raise UserError(
            f"{len(request.style_images)} example pictures for {len(pairs)} objects: give one for "
            "each"
        )
    if len(pairs) == 1:
        return [plan_edit(request, styles, find)]
    images = request.style_images
    clauses = [
        EditRequest(words, style, seed=request.seed, style_images=images[i : i + 1])
        for i, (words, style) in enumerate(pairs)
    ]
    return [plan_edit(clause, styles, find) for clause in clauses]


def plan_edit(
    request: EditRequest,
    styles: Styles,
    find: Callable[[str, Span], list[int]],
) -> EditPlan:
    """Checks a request and looks everything up.

    Args:
        request: what is asked for.
        styles: those there are.
        find: positions of a phrase's tokens in a prompt, see `Backbone.token_indices`.

    Raises:
        UserError: unknown style, an example picture for experts that cannot use one, empty,
            missing, ambiguous or cut-off phrase, bad seed.
    """
    if not 0 <= request.seed < 2**63:
        raise UserError(f"seed {request.seed}: must be between 0 and 2^63 - 1")
    object_phrase, style = _phrases(request)
    look = styles.look(style, request.style_images[0] if request.style_images else None)
    prompt = _prompt(request, object_phrase, style, look)
    if styles.by_example:  # trained without any style's word
        prompt = with_style(prompt, look.words)
    spans = prompt.style_spans[0], prompt.object_spans[0]
    tokens = [find(prompt.text, span) for span in spans]
    return EditPlan(object_phrase, look, prompt, request.seed, *tokens)


def _is_marked(text: str) -> bool:
    return any(mark in text for mark in "[]{}")


def _phrases(request: EditRequest) -> tuple[str, str]:
    """Object and style: as given, or from the marks of the prompt where they are not."""
    object_phrase, style = request.object, request.style
    shown = bool(request.style_images)
    complete = object_phrase.strip() and (style.strip() or shown)
    if isinstance(request.prompt, str) and _is_marked(request.prompt) and not complete:
        marked = parse_marked(request.prompt)
        object_phrase = object_phrase.strip() or marked.text[slice(*marked.object_spans[0])]
        if not shown:
            style = style.strip() or marked.text[slice(*marked.style_spans[0])]
    return object_phrase, style


def _prompt(request: EditRequest, object_phrase: str, style: str, look: Look) -> Prompt:
    """The prompt with the spans of exactly the requested pair."""
    if request.prompt is None:
        return build_prompt([(object_phrase, look.words)])
    if isinstance(request.prompt, Prompt):
        return request.prompt
    if not _is_marked(request.prompt):
        said = look.words if look.embedding is None else style
        spans = find_spans(request.prompt, object_phrase, said)
        return Prompt(request.prompt, spans[:1], spans[1:])
    marked = parse_marked(request.prompt)
    pairs = list(zip(marked.object_spans, marked.style_spans, strict=True))
    for object_span, style_span in pairs:
        if _same(marked.text, object_span, object_phrase) and (
            look.image is not None
            or any(_same(marked.text, style_span, x) for x in (style, look.words, look.name))
        ):
            return Prompt(marked.text, (object_span,), (style_span,))
    found = ", ".join(f"[{marked.text[slice(*o)]}] {{{marked.text[slice(*s)]}}}" for o, s in pairs)
    raise UserError(
        f"prompt {request.prompt!r}: marks {found}, but object {object_phrase!r} in style "
        f"{style or look.words!r} is asked for; mark that pair"
    )


def _same(text: str, span: Span, phrase: str) -> bool:
    return text[slice(*span)].casefold().split() == phrase.casefold().split()
