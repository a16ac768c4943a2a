"""From a metric's name to the function that computes it with the available networks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.encoders.networks import Networks
from eval.judge.answers import rate
from eval.judge.questions import SEMANTIC
from eval.metrics import embedding, structure, style
from eval.metrics.aggregate import rse_aggregate
from eval.metrics.attention import attention_iou, attention_share
from eval.metrics.base import EvalBatch, SampleMetric
from eval.metrics.catalogue import CATALOGUE
from eval.metrics.drift import drift
from eval.metrics.lpips import lpips_bg
from eval.metrics.region import boundary_error, coverage, leak, success
from eval.metrics.rsm import rsm
from eval.metrics.views import SCOPES, Scope, per_sample, remembered, square, views
from regionroute.data.region_scores import in_mask_error, in_mask_ratio, mse_bg

Function = Callable[[EvalBatch], Tensor]
SCOPED = ("styleexpert", "stylegallery", "stylemamba")  # groups whose scope can be chosen


def build_metrics(
    networks: Networks | None = None,
    names: Sequence[str] | None = None,
    scope: Scope = "object",
) -> list[SampleMetric]:
    """The metrics that the available networks allow, in the catalogue's order.

    Args:
        networks: the available ones; none by default.
        names: of the metrics, all by default; set metrics are ignored.
        scope: what the metrics of other papers are measured on.
    """
    networks = networks or Networks()
    chosen = CATALOGUE if names is None else [name for name in CATALOGUE if name in names]
    functions = {**_plain(), **_networked(networks, scope), **_judged(networks, scope)}
    metrics = []
    for name in chosen:
        info = CATALOGUE[name]
        if networks.lacks(info.needs):
            continue
        remark = SCOPES[scope] if info.group in SCOPED else ""
        encoder = _identity(networks, info.needs)
        metrics.append(SampleMetric(info, functions[name], encoder, remark))
    return metrics


def _identity(networks: Networks, needs: Sequence[str]) -> dict[str, str]:
    """Names and hashes of all networks of a metric, in one dict."""
    parts = [getattr(networks, name) for name in needs if name not in ("map", "styles")]
    entries = [part.identity() for part in parts]
    joined = {}
    for key in dict.fromkeys(key for entry in entries for key in entry):
        joined[key] = " + ".join(entry[key] for entry in entries if key in entry)
    if "styles" in needs and networks.styles is not None:
        joined["style_images"] = networks.styles.identity()
    return joined


def _plain() -> dict[str, Function]:
    """Those that need nothing but the images and the map."""
    return {
        "success": lambda b: success(b.output, b.content, b.target, b.mask),
        "in_mask_ratio": lambda b: in_mask_ratio(b.output, b.content, b.target, b.mask),
        "in_mask_error": lambda b: in_mask_error(b.output, b.target, b.mask),
        "coverage": lambda b: coverage(b.output, b.content, b.mask),
        "mse_bg": _mse_bg,
        "mse_bg_unit": lambda b: _mse_bg(b) / 4,
        "boundary_error": lambda b: boundary_error(b.output, b.content, b.mask),
        "leak": lambda b: leak(b.output, b.content, b.mask),
        "drift_shift": lambda b: _drift(b)[0],
        "drift_zoom": lambda b: _drift(b)[1],
        "attention_iou": lambda b: _from_map(b, attention_iou),
        "attention_share": lambda b: _from_map(b, attention_share),
    }


def _mse_bg(batch: EvalBatch) -> Tensor:
    found: Tensor = remembered(
        batch, "mse_bg", lambda: mse_bg(batch.output, batch.content, batch.mask)
    )
    return found


def _drift(batch: EvalBatch) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = remembered(
        batch, "drift", lambda: drift(batch.output, batch.content, batch.mask)
    )
    return found


def _from_map(batch: EvalBatch, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[B]; one sample at a time because grids may differ, NaN where there is no map."""
    values = []
    for region_map, mask in zip(batch.region_maps, batch.mask, strict=True):
        if region_map is None:
            values.append(torch.tensor(torch.nan))
        else:
            values.append(measure(region_map[None, None], mask[None])[0].cpu())
    return torch.stack(values)


def _networked(networks: Networks, scope: Scope) -> dict[str, Function]:
    """Those that need a network; call only those whose networks are available."""
    see = _Seeing(networks, scope)
    names = (
        *("lpips_bg", "rsm", "csd", "dreamsim", "aesthetic", "gram", "style_match", "lpips"),
        *("clip_score", "clip_directional", "ssim", "vgg_content", "rse_aggregate"),
    )
    functions: dict[str, Function] = {name: getattr(see, name) for name in names}
    return functions | {
        "clip_i": lambda b: see.kept(b, "clip"),
        "dino": lambda b: see.kept(b, "dino"),
    }


class _Seeing:
    """Features of a batch's views, each computed once per batch.

    Only metrics whose networks are available call these methods, hence the `Any`.
    """

    def __init__(self, networks: Networks, scope: Scope) -> None:
        self.networks: Any = networks
        self.scope = scope
        self._own: tuple[list[str], dict[object, Any]] = ([], {})

    def views(self, batch: EvalBatch, which: str) -> list[Tensor]:
        return views(batch, getattr(batch, which), self.scope)

    def embedded(self, batch: EvalBatch, network: str, which: str) -> Tensor:
        """Unit vectors [V,D] of the views."""
        encoder = getattr(self.networks, network)
        found: Tensor = self._once(
            batch,
            network,
            which,
            lambda: encoder.encode_image(self.views(batch, which)).float().cpu(),
        )
        return found

    def featured(self, batch: EvalBatch, which: str) -> style.StyleFeatures:
        """VGG's features of the views."""
        found: style.StyleFeatures = self._once(
            batch,
            "vgg",
            which,
            lambda: self._vgg(self.views(batch, which), batch),
        )
        return found

    def _vgg(self, pictures: list[Tensor], batch: EvalBatch) -> style.StyleFeatures:
        squares = square(pictures, style.VIEW_SIDE).to(batch.output.device)
        return style.style_features(squares, self.networks.vgg)

    def _once(self, batch: EvalBatch, what: str, which: str, make: Callable[[], Any]) -> Any:
        """Made once per batch; of sources and targets once for all methods in a row."""
        if which == "output":
            return remembered(batch, (what, which), make)
        if self._own[0] != batch.ids:
            self._own = (batch.ids, {})
        if (what, which) not in self._own[1]:
            self._own[1][what, which] = make()
        return self._own[1][what, which]

    def texts(self, batch: EvalBatch, template: str) -> Tensor:
        """Embeddings [V,D] of a template filled with each region's object and style."""
        pairs = _words(batch)
        texts = [template.format(object=word, style=words) for word, words, _ in pairs]
        distinct = sorted(set(texts))
        vectors = self.networks.clip.encode_text(distinct).float().cpu()
        return vectors[torch.tensor([distinct.index(text) for text in texts])]

    def rsm(self, batch: EvalBatch, which: str = "output") -> Tensor:
        """All regions of the batch in one call of the encoder, then the mean of each sample."""

        def make() -> Tensor:
            images = getattr(batch, which)
            counts = torch.tensor([len(m) for m in batch.region_masks], device=images.device)
            styles = [words for _, words, _ in _words(batch)]
            masks = torch.cat(batch.region_masks)
            crops = images.repeat_interleave(counts, 0)
            return per_sample(rsm(crops, masks, styles, self.networks.clip), batch)

        found: Tensor = self._once(batch, "rsm", which, make)
        return found

    def lpips_bg(self, batch: EvalBatch) -> Tensor:
        found: Tensor = self._once(
            batch,
            "lpips_bg",
            "output",
            lambda: lpips_bg(batch.output, batch.content, batch.mask, self.networks.lpips),
        )
        return found

    def rse_aggregate(self, batch: EvalBatch) -> Tensor:
        edit, source, target = (self.rsm(batch, w).cpu() for w in ("output", "content", "target"))
        return rse_aggregate(edit, source, target, self.lpips_bg(batch).cpu())

    def lpips(self, batch: EvalBatch) -> Tensor:
        output, content = (self.views(batch, which) for which in ("output", "content"))
        return per_sample(structure.lpips(output, content, self.networks.lpips), batch)

    def ssim(self, batch: EvalBatch) -> Tensor:
        pair = (self.views(batch, which) for which in ("output", "content"))
        return per_sample(structure.ssim(*pair), batch)

    def aesthetic(self, batch: EvalBatch) -> Tensor:
        return per_sample(self.networks.aesthetic(self.embedded(batch, "clip", "output")), batch)

    def kept(self, batch: EvalBatch, network: str) -> Tensor:
        pair = (self.embedded(batch, network, which) for which in ("output", "content"))
        return per_sample(embedding.cosine(*pair), batch)

    def clip_score(self, batch: EvalBatch) -> Tensor:
        texts = self.texts(batch, embedding.STYLED_TEXT)
        return per_sample(embedding.cosine(self.embedded(batch, "clip", "output"), texts), batch)

    def clip_directional(self, batch: EvalBatch) -> Tensor:
        pictures = (self.embedded(batch, "clip", which) for which in ("output", "content"))
        words = (self.texts(batch, t) for t in (embedding.STYLED_TEXT, embedding.PHOTO_TEXT))
        return per_sample(embedding.directional(*pictures, *words), batch)

    def csd(self, batch: EvalBatch) -> Tensor:
        own = self.embedded(batch, "csd", "output")
        encode = lambda pictures: self.networks.csd.encode_image(pictures).float().cpu()  # noqa: E731
        return self._referred(
            batch,
            "csd",
            encode,
            lambda n, refs: embedding.cosine(own[n].expand_as(refs), refs).mean(),
        )

    def dreamsim(self, batch: EvalBatch) -> Tensor:
        own = self.views(batch, "output")
        return self._referred(
            batch,
            "images",
            lambda pictures: pictures,
            lambda n, refs: self.networks.dreamsim.distance([own[n]] * len(refs), refs).mean(),
        )

    def gram(self, batch: EvalBatch) -> Tensor:
        own = self.featured(batch, "output").grams
        return self._referred(
            batch,
            "vgg",
            lambda refs: self._vgg(refs, batch),
            lambda n, refs: (
                style.gram_distance([g[n : n + 1] for g in own], refs.grams).min().cpu()
            ),
        )

    def style_match(self, batch: EvalBatch) -> Tensor:
        own = self.featured(batch, "output").blocks
        return self._referred(
            batch,
            "vgg",
            lambda refs: self._vgg(refs, batch),
            lambda n, refs: torch.tensor(style.style_match(own[n], refs.blocks.flatten(0, 1))),
        )

    def vgg_content(self, batch: EvalBatch) -> Tensor:
        pair = (self.featured(batch, which).content for which in ("output", "content"))
        return per_sample(style.vgg_content(*pair).cpu(), batch)

    def _referred(
        self,
        batch: EvalBatch,
        what: str,
        make: Callable[[list[Tensor]], Any],
        measure: Callable[[int, Any], Tensor],
    ) -> Tensor:
        """A measure of each view against its style's images, NaN for a style without any."""
        values = []
        for number, (_, _, name) in enumerate(_words(batch)):
            made = self.networks.styles.made(what, name, make)
            values.append(torch.tensor(torch.nan) if made is None else measure(number, made))
        return per_sample(torch.stack([value.float() for value in values]), batch)


def _words(batch: EvalBatch) -> list[tuple[str, str, str]]:
    """Object, style phrase and style name of each of the V regions."""
    groups = zip(batch.labels, batch.styles, batch.style_names, strict=True)
    return [words for group in groups for words in zip(*group, strict=True)]


def _judged(networks: Networks, scope: Scope) -> dict[str, Function]:
    """The judge's questions, one answer a region."""

    def yes_rate(name: str) -> Function:
        return lambda b: _asked(b, networks, scope, name, "yes")

    questions = {name: yes_rate(name) for name in ("q1", "q2", "q3", "q4")}
    return questions | {
        "semantic": lambda b: _asked(b, networks, scope, SEMANTIC, "semantic"),
        "semantic_color": lambda b: _asked(b, networks, scope, SEMANTIC, "color"),
    }


def _asked(batch: EvalBatch, networks: Networks, scope: Scope, name: str, counted: str) -> Tensor:
    """[B]: the share of regions with this verdict, NaN where no answer was clear."""
    judge, values = networks.judge, []
    assert judge is not None
    seen = views(batch, batch.output, scope if name == SEMANTIC else "image")
    places = [(n, r) for n, masks in enumerate(batch.region_masks) for r in range(len(masks))]
    for (number, region), picture, words in zip(places, seen, _words(batch), strict=True):
        shown = [picture]
        if name == SEMANTIC and networks.styles is not None:
            shown = networks.styles.made("images", words[2], lambda p: p) or []
            shown = [*shown[:1], picture]
        if name == SEMANTIC and len(shown) < 2:
            values.append(float("nan"))
            continue
        where = {"id": batch.ids[number], "method": batch.method, "region": region}
        verdict = judge.ask(name, where, shown, judge.config.question(name, *words))
        values.append(rate(verdict, counted))
    return per_sample(torch.tensor(values), batch)
