"""Edit requests and options, and how a request becomes prompts, experts and token positions.

Shape legend: B images, S (object, style) pairs per image, H W pixels, h w the token grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from regionroute.config.choices import (
    INSTANCES,
    MODES,
    SPARSE_QUALITIES,
    Instance,
    Mode,
    SparseQuality,
)
from regionroute.config.sites import Word
from regionroute.data.prompts import (
    Prompt,
    Span,
    build_prompt,
    find_spans,
    object_words,
    parse_marked,
    with_style,
)
from regionroute.editing.styles import ResolvedStyle, Styles
from regionroute.errors import UserError

MAX_STEPS = 1000  # number of training timesteps of the scheduler


@dataclass(frozen=True)
class EditRequest:
    """What to do with one image.

    Attributes:
        object: word or phrase for the object; may be empty if ``prompt`` marks it. The template
            takes its `regionroute.data.prompts.object_words`, the metadata keeps it as it is.
        style: name or phrase of the style, or a blend ("0.6 pixel-art + 0.4 line-art"); may be
            empty if ``prompt`` marks it or ``style_images`` show it.
        prompt: None for the template; else a text in which the phrases are marked ("turn the
            [dog] into {pixel-art}") or occur once, or a prompt with its spans.
        seed: of the noise.
        also: further (object, style) pairs of the same image.
        regions: where each pair acts, [H,W] in [0,1] of the image's size, in place of the
            predicted region maps; empty: predict them.
        style_images: a reference image [3,H,W] in [0,1] for the style of each pair, in place of
            its word; empty: use the words.
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
        return parse_marked(self.prompt).pairs


@dataclass
class EditResult:
    """An edited image.

    Attributes:
        image: [3,H,W] float32 in [0,1] on the CPU, the size of the input.
        region_map: [h,w] in [0,1] on the CPU: the normalised attention of the words, the region's
            boundary at 0.5; None unless asked for.
        prompt: the text that was encoded.
        settings: the metadata: all settings that reproduce the edit, JSON-able.
        regions: where each pair acted, [S,H,W] in [0,1] on the CPU; None unless the map was asked
            for and the background is locked.
    """

    image: Tensor
    region_map: Tensor | None
    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)
    regions: Tensor | None = None


@dataclass(frozen=True)
class EditOptions:
    """How images are edited. None stands for the default of the base and its experts.

    Attributes:
        steps: sampling steps.
        guidance: guidance scale, embedded (guidance-distilled bases) or classifier-free.
        mode: "plain" conditions on the whole prompt, as the paper does; "routed" applies each
            style where the region map of its pair says, see `regionroute.routing.gates`.
        lock_background: keep all pixels outside the region bit for bit.
        strength: of the style inside the region, in [0,1]; 0 is the source; below 1 only routed.
        instance: which of several objects of a word, see `regionroute.routing.instances`; routed.
        refine_crop: restyle small objects of large images once more in a crop around them, see
            `regionroute.editing.refine_crop`; needs a locked background.
        sparse: compute only the region in most steps, see `regionroute.editing.sparse`; routed, or
            with given regions and a locked background. None: where it pays (routed, a locked
            background, several steps, many tokens).
        force: edit even where the object seems to be absent (`RoutingConfig.presence`); it is not
            asked then whether it is.
        sparse_quality: how close sparse edits are to dense ones; docs/measured/sparse.md has the
            error and the time of each.
    """

    steps: int | None = None
    guidance: float | None = None
    mode: Mode | None = None
    lock_background: bool | None = None
    strength: float = 1.0
    instance: Instance = "all"
    refine_crop: bool | None = None
    sparse: bool | None = None
    force: bool = False
    sparse_quality: SparseQuality = "balanced"

    def resolved(
        self, *, steps: int, guidance: float, mode: Mode, refine_crop: bool = False
    ) -> EditOptions:
        """Replace every None by a default.

        Raises:
            UserError: a value of a wrong type or out of range, or one that the mode does not use.
        """
        chosen = self.mode or mode
        if chosen not in MODES:
            raise UserError(f"mode {chosen!r}: must be one of {', '.join(MODES)}")
        if not (isinstance(self.strength, Real) and 0 <= self.strength <= 1):
            raise UserError(f"strength {self.strength!r}: must be between 0 and 1")
        if chosen == "plain" and self.strength != 1:
            raise UserError("strength below 1 needs mode routed")
        if self.instance not in INSTANCES:
            raise UserError(f"instance {self.instance!r}: must be one of {', '.join(INSTANCES)}")
        if chosen == "plain" and self.instance != "all":
            raise UserError(f"instance {self.instance} needs mode routed")
        if self.sparse_quality not in SPARSE_QUALITIES:
            known = ", ".join(SPARSE_QUALITIES)
            raise UserError(f"sparse_quality {self.sparse_quality!r}: must be one of {known}")
        steps = steps if self.steps is None else self.steps
        guidance = guidance if self.guidance is None else self.guidance
        if not (isinstance(steps, Integral) and 1 <= steps <= MAX_STEPS):
            raise UserError(f"steps {steps!r}: must be a whole number between 1 and {MAX_STEPS}")
        if not (isinstance(guidance, Real) and math.isfinite(guidance) and guidance >= 0):
            raise UserError(f"guidance {guidance!r}: must be a finite number, 0 or more")
        lock = chosen == "routed" if self.lock_background is None else self.lock_background
        can_refine = chosen == "routed" and lock
        if self.refine_crop and not can_refine:
            raise UserError("refine_crop needs mode routed and a locked background")
        refine = can_refine and (refine_crop if self.refine_crop is None else self.refine_crop)
        return replace(
            self,
            steps=steps,
            guidance=guidance,
            mode=chosen,
            lock_background=lock,
            refine_crop=refine,
        )


@dataclass(frozen=True)
class EditPlan:
    """One (object, style) pair of a request, checked and resolved.

    Attributes:
        object: the object's phrase, as the user wrote it.
        style: the resolved style.
        prompt: the text to encode, with the spans of this pair first.
        seed: of the noise.
        style_tokens: positions of the style phrase among the encoded tokens.
        object_tokens: those of the object phrase.
    """

    object: str
    style: ResolvedStyle
    prompt: Prompt
    seed: int
    style_tokens: list[int]
    object_tokens: list[int]

    def tokens(self, word: Word) -> list[int]:
        """Positions of one of the two phrases."""
        return self.object_tokens if word == "object" else self.style_tokens

    @property
    def style_words(self) -> str:
        """The style phrase of the prompt."""
        return self.prompt.text[slice(*self.prompt.style_spans[0])]


def plan_pairs(
    request: EditRequest,
    styles: Styles,
    find: Callable[[str, Span], list[int]],
) -> list[EditPlan]:
    """Plan each (object, style) pair of a request; arguments as of `plan_pair`.

    Several pairs get a template prompt each: a map is read from the prompt of its own pair. Of the
    user's prompt only the marked pairs are taken then.

    Raises:
        UserError: see `plan_pair`; not one region, or not one style image for each pair; one object
            twice without regions; or a prompt that does not mark just these pairs.
    """
    pairs = request.pairs
    if request.regions and len(request.regions) != len(pairs):
        raise UserError(
            f"{len(request.regions)} region maps for {len(pairs)} objects: give one for each"
        )
    if request.style_images and len(request.style_images) != len(pairs):
        raise UserError(
            f"{len(request.style_images)} style images for {len(pairs)} objects: give one for each"
        )
    if len(pairs) == 1:
        return [plan_pair(request, styles, find)]
    if not request.regions:
        _check_distinct([words for words, _ in pairs])
    if request.prompt is not None:
        _check_marked(request.prompt, request)
    images = request.style_images
    single = [
        EditRequest(words, style, seed=request.seed, style_images=images[i : i + 1])
        for i, (words, style) in enumerate(pairs)
    ]
    return [plan_pair(one, styles, find) for one in single]


def plan_pair(
    request: EditRequest,
    styles: Styles,
    find: Callable[[str, Span], list[int]],
) -> EditPlan:
    """Check a request with one pair and resolve its prompt, style and token positions.

    Args:
        request: with one (object, style) pair.
        styles: the available ones.
        find: positions of a phrase's tokens in a prompt, see `Backbone.token_indices`.

    Raises:
        UserError: unknown style, a style image for experts chosen by name, an empty, missing,
            ambiguous or truncated phrase, or a bad seed.
    """
    if not 0 <= request.seed < 2**63:
        raise UserError(f"seed {request.seed}: must be between 0 and 2^63 - 1")
    object_phrase, style_phrase = _phrases(request)
    image = request.style_images[0] if request.style_images else None
    style = styles.resolve(style_phrase, image)
    prompt = _prompt(request, object_phrase, style_phrase, style)
    if styles.by_example:  # these experts were trained without style words
        prompt = with_style(prompt, style.words)
    spans = prompt.style_spans[0], prompt.object_spans[0]
    tokens = [find(prompt.text, span) for span in spans]
    return EditPlan(object_phrase, style, prompt, request.seed, *tokens)


def _is_marked(text: str) -> bool:
    return any(mark in text for mark in "[]{}")


def _check_distinct(objects: Sequence[str]) -> None:
    """Refuses an object named twice: two equal maps share the region, and half a style each."""
    seen: set[str] = set()
    for phrase in objects:
        words = object_words(phrase)
        if words and words in seen:
            raise UserError(
                f"object {phrase!r} is named twice: name it once, with a blend for two styles, or "
                "give a region map for each"
            )
        seen.add(words)


def _check_marked(prompt: str | Prompt, request: EditRequest) -> None:
    """Refuses wording that would be dropped: several pairs get the template's."""
    compared = 1 if request.style_images else 2  # of a pair: images stand for the style's words
    if isinstance(prompt, str) and _is_marked(prompt):
        marked, asked = (
            [[object_words(phrase) for phrase in pair[:compared]] for pair in pairs]
            for pairs in (parse_marked(prompt).pairs, request.pairs)
        )
        if marked == asked:
            return
    shown = prompt if isinstance(prompt, str) else prompt.text
    marks = ", ".join(f"[{words}] {{{style or 'style'}}}" for words, style in request.pairs)
    raise UserError(
        f"prompt {shown!r}: several objects get the template's wording; leave the prompt out, or "
        f"mark just the pairs of the request in their order, {marks}"
    )


def _phrases(request: EditRequest) -> tuple[str, str]:
    """Object and style: as given, or from the marks of the prompt where they are not."""
    object_phrase, style = request.object, request.style
    has_image = bool(request.style_images)
    complete = object_phrase.strip() and (style.strip() or has_image)
    if isinstance(request.prompt, str) and _is_marked(request.prompt) and not complete:
        marked_object, marked_style = parse_marked(request.prompt).pairs[0]
        object_phrase = object_phrase.strip() or marked_object
        if not has_image:
            style = style.strip() or marked_style
    return object_phrase, style


def _prompt(
    request: EditRequest, object_phrase: str, style_phrase: str, style: ResolvedStyle
) -> Prompt:
    """The prompt with the spans of exactly the requested pair."""
    if request.prompt is None:
        return build_prompt([(object_words(object_phrase), style.words)])
    if isinstance(request.prompt, Prompt):
        return request.prompt
    if not _is_marked(request.prompt):
        words = style.words if style.embedding is None else style_phrase
        spans = find_spans(request.prompt, object_phrase, words)
        return Prompt(request.prompt, spans[:1], spans[1:])
    marked = parse_marked(request.prompt)
    names = (style_phrase, style.words, style.name)
    for object_span, style_span in zip(marked.object_spans, marked.style_spans, strict=True):
        if _same(marked.text, object_span, object_phrase) and (
            style.image is not None or any(_same(marked.text, style_span, x) for x in names)
        ):
            return Prompt(marked.text, (object_span,), (style_span,))
    found = ", ".join(f"[{one}] {{{other}}}" for one, other in marked.pairs)
    raise UserError(
        f"prompt {request.prompt!r}: it marks {found}, but the request is object "
        f"{object_phrase!r} in style {style_phrase or style.words!r}: mark that pair"
    )


def _same(text: str, span: Span, phrase: str) -> bool:
    """Whether a marked phrase is this one; case, spaces and hyphens do not matter."""
    return object_words(text[slice(*span)]) == object_words(phrase)
