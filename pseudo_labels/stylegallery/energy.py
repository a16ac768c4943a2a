"""The regional style loss and the global content loss on self-attention (StyleGallery §3.3).

For a content region c and its match s, T_c = softmax(1.5 Q K_sᵀ/√d) V_s with keys of the
matched region only; L = Σ_layers Σ_c mean|m_c (O − T_c)| + λ_c Σ_layers mean|Q − Q_c|. Targets have
no gradient. Means are over all elements, so regions are weighted by area.

Shape legend: H heads, N cells of a layer's grid, d head width, R references, c latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pseudo_labels.stylegallery.config import EnergyConfig
from pseudo_labels.stylegallery.matching import Match
from pseudo_labels.stylegallery.models.attention import Recorded, region_attention
from pseudo_labels.stylegallery.models.base import GalleryModel, chosen_layers


@dataclass(frozen=True)
class RegionPair:
    """Content cells matched with one region of one reference, on the grid of one layer.

    Attributes:
        cells: indices of content cells.
        reference: index of the reference.
        keys: indices of the cells of its region, at least one.
    """

    cells: Tensor
    reference: int
    keys: Tensor


def pair_regions(
    matches: Sequence[Match],
    content: Tensor,
    references: Sequence[Tensor],
    cells: int,
    styled: Sequence[int] | None = None,
) -> list[RegionPair]:
    """Matches as cell indices on the grid of a layer.

    Regions with the same match form one pair, because they attend to the same keys.

    Args:
        matches: matches of all content regions.
        content: labels [h, w].
        references: labels [h, w] of each reference.
        cells: N, cells of the layer.
        styled: labels of the regions that are restyled, None for all.

    Returns:
        Pairs that are not empty.
    """
    wanted = [match for match in matches if styled is None or match.region in styled]
    groups: dict[tuple[int, int], list[int]] = {}
    for match in wanted:
        groups.setdefault((match.reference, match.cluster), []).append(match.region)
    small = shrink(content, cells)
    pairs = []
    for (reference, cluster), regions in groups.items():
        inside = torch.isin(small, torch.tensor(regions)).nonzero()[:, 0]
        if len(inside):
            keys = region_cells(references[reference], cluster, cells)
            pairs.append(RegionPair(inside, reference, keys))
    return pairs


def shrink(labels: Tensor, cells: int) -> Tensor:
    """Labels [h, w] at another resolution, by nearest neighbour: [cells]."""
    return F.interpolate(labels[None, None].double(), _grid(labels, cells)).flatten().long()


def region_cells(labels: Tensor, cluster: int, cells: int) -> Tensor:
    """Indices of a region's cells at another resolution; a tiny region keeps its best cell."""
    found = (shrink(labels, cells) == cluster).nonzero()[:, 0]
    if len(found):
        return found
    share = F.adaptive_avg_pool2d((labels == cluster)[None].double(), _grid(labels, cells))
    return share.flatten().argmax()[None]


def _grid(labels: Tensor, cells: int) -> tuple[int, int]:
    height, width = labels.shape
    rows = max(1, round((cells * height / width) ** 0.5))
    if cells % rows:
        raise ValueError(f"a layer of {cells} cells has no grid like {height}x{width}")
    return rows, cells // rows


@dataclass(frozen=True)
class Anchors:
    """What the energy compares with at one timestep, without gradients.

    Attributes:
        queries: of the content, [1, H, N, d] per layer.
        keys: of the references, [R, H, N, d] per layer.
        values: of the references, [R, H, N, d] per layer.
    """

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]


def regional_style_loss(
    recorded: Recorded,
    anchors: Anchors,
    pairs: Sequence[Sequence[RegionPair]],
    config: EnergyConfig,
) -> Tensor:
    """Σ_layers Σ_c mean|m_c (O − T_c)|, in float32.

    Args:
        recorded: attention of the current latents.
        anchors: keys and values of the references.
        pairs: region pairs of each layer.
        config: temperature and masking.
    """
    total = torch.zeros((), device=recorded.outputs[0].device)
    for layer, output in enumerate(recorded.outputs):
        for pair in pairs[layer]:
            with torch.no_grad():
                place = (slice(pair.reference, pair.reference + 1), slice(None), pair.keys)
                target = region_attention(
                    recorded.queries[layer][:, :, pair.cells],
                    anchors.keys[layer][place],
                    anchors.values[layer][place],
                    config.temperature,
                    config.masking,
                    anchors.keys[layer].shape[-2],
                )
            difference = output[:, :, pair.cells].float() - target.float()
            total = total + difference.abs().sum() / output.numel()
    return total


def content_loss(recorded: Recorded, anchors: Anchors) -> Tensor:
    """Σ_layers mean|Q − Q_c|, in float32."""
    pairs = zip(recorded.queries, anchors.queries, strict=True)
    return torch.stack([F.l1_loss(q.float(), target.float()) for q, target in pairs]).sum()


@dataclass(frozen=True)
class EnergyValue:
    """Losses of one evaluation.

    Attributes:
        style: the regional style loss.
        content: the global content loss, unweighted.
        total: their weighted sum.
    """

    style: Tensor
    content: Tensor
    total: Tensor


class ReferenceBank:
    """Keys and values of references by timestep, in CPU memory, up to a limit.

    With the same references for many photos (labelling), each timestep needs one pass in total.
    What does not fit is computed each time.

    Args:
        limit: maximum size in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}

    def get(self, key: Any, device: torch.device) -> tuple[list[Tensor], list[Tensor]] | None:
        """Keys and values, each a list of [1, H, N, d] per layer, or None."""
        known = self._kept.get(key)
        if known is None:
            return None
        return [item.to(device) for item in known[0]], [item.to(device) for item in known[1]]

    def put(self, key: Any, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Keep copies, if there is room."""
        size = sum(item.numel() * item.element_size() for item in (*keys, *values))
        if key not in self._kept and self.size + size <= self.limit:
            copies = [[item.clone().cpu() for item in items] for items in (keys, values)]
            self._kept[key] = (copies[0], copies[1])
            self.size += size


class AttentionEnergy:
    """The energy of latents, for one content image and its matched references.

    Args:
        model: a frozen diffusion model.
        content: clean latents [1, c, h, w].
        references: clean latents of each reference [R, c, h, w].
        regions: matches, the content's labels, and the references' labels.
        config: layers, weights, masking.
        styled: the content regions that are restyled, None for all.
        bank: cache of keys and values of the references; None: computed at every timestep.
        names: keys of the references in the bank; different for different images and noise.
    """

    def __init__(
        self,
        model: GalleryModel,
        content: Tensor,
        references: Tensor,
        regions: tuple[Sequence[Match], Tensor, Sequence[Tensor]],
        config: EnergyConfig,
        *,
        styled: Sequence[int] | None = None,
        bank: ReferenceBank | None = None,
        names: Sequence[Any] = (),
    ) -> None:
        self.model, self.config = model, config
        self.layers = chosen_layers(config.layers, model.layers)
        self._content, self._references = content, references
        self._regions, self._styled = regions, styled
        self._bank, self._names = bank, names
        self._pairs: list[list[RegionPair]] | None = None
        matches = [m for m in regions[0] if styled is None or m.region in styled]
        # References that no region is matched with are not encoded.
        self._used = sorted({match.reference for match in matches})

    def predict(self, latents: Tensor, timestep: int) -> Tensor:
        """The model's prediction for latents [1, c, h, w] of the content's restyled image."""
        return self.model.predict(latents, timestep, self._content)

    @torch.no_grad()
    def anchors(self, timestep: int, noised: tuple[Tensor, Tensor] | None = None) -> Anchors:
        """The content's queries and the references' keys and values at a timestep.

        Args:
            timestep: timestep of the model.
            noised: content and references [R, c, h, w] at that noise level; None: the clean ones.
        """
        content, references = noised or (self._content, self._references)
        found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for place in self._used if self._bank else ():
            known = self._bank and self._bank.get(self._key(place, timestep), content.device)
            if known:
                found[place] = known
        absent = [place for place in self._used if place not in found]
        noisy = torch.cat([content, references[absent]])
        clean = torch.cat([self._content, self._references[absent]])
        record = self.model.record(noisy, timestep, clean, self.layers, inputs_only=True)
        for row, place in enumerate(absent, start=1):
            keys = [item[row : row + 1] for item in record.keys]
            values = [item[row : row + 1] for item in record.values]
            found[place] = (keys, values)
            if self._bank:
                self._bank.put(self._key(place, timestep), keys, values)
        queries = [item[:1] for item in record.queries]
        ordered = [found[place] for place in self._used]
        if not ordered:
            return Anchors(queries, [], [])
        keys = [torch.cat(layer) for layer in zip(*[item[0] for item in ordered], strict=True)]
        values = [torch.cat(layer) for layer in zip(*[item[1] for item in ordered], strict=True)]
        return Anchors(queries, keys, values)

    def value(self, latents: Tensor, timestep: int, anchors: Anchors) -> EnergyValue:
        """The energy of latents [1, c, h, w]; only they get a gradient."""
        recorded = self.model.record(latents, timestep, self._content, self.layers)
        style = regional_style_loss(recorded, anchors, self._planned(recorded), self.config)
        content = content_loss(recorded, anchors)
        return EnergyValue(style, content, style + self.config.content_weight * content)

    def _planned(self, recorded: Recorded) -> list[list[RegionPair]]:
        """Pairs of each layer; its grid is known after the first pass."""
        if self._pairs is None:
            matches, content, references = self._regions
            device = recorded.queries[0].device
            known: dict[int, list[RegionPair]] = {}
            for cells in {query.shape[-2] for query in recorded.queries}:
                pairs = pair_regions(matches, content, references, cells, self._styled)
                known[cells] = [
                    RegionPair(
                        pair.cells.to(device),
                        self._used.index(pair.reference),  # anchors hold only the used references
                        pair.keys.to(device),
                    )
                    for pair in pairs
                ]
            self._pairs = [known[query.shape[-2]] for query in recorded.queries]
        return self._pairs

    def _key(self, place: int, timestep: int) -> Any:
        return (self._names[place], timestep)
