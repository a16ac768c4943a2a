"""Seeded random weights of networks of any size, written tensor by tensor into safetensors files.

Linear and convolution weights are normal with a standard deviation of 1/sqrt(fan-in), embeddings
with 1, norms are 1 and biases 0, so that activations stay near 1 through any number of layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regionroute.config.choices import Quantize
from regionroute.files import atomic_write, write_json
from regionroute.models.formats.packed import NAME, STATE
from regionroute.models.quantize import BLOCKS, nf4_bytes, nf4_code, nf4_state
from regionroute.rehearsal.bases import empty_networks

POOL = 4_194_301  # prime: repetitions never align with the rows of a weight
SHARD = 2**30  # bytes of a file, one tensor may exceed it
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Entry:
    """A tensor to write.

    Attributes:
        name: its key.
        like: on the meta device.
        std: of the values; None: they are all `fill`.
        fill: see `std`.
        packed: whether it is stored in nf4.
    """

    name: str
    like: Tensor
    std: float | None
    fill: float = 0.0
    packed: bool = False

    @property
    def bytes(self) -> int:
        """On disk, about."""
        if self.packed:
            return nf4_bytes(self.like.numel())
        return self.like.numel() * (DTYPE.itemsize if self.like.is_floating_point() else 8)


class Noise:
    """Normal values of a seed, drawn once and reused from a place that a name determines."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._values = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))
        self._scaled: dict[float, Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        self._bytes = torch.randint(0, 256, (POOL,), generator=generator, dtype=torch.uint8)

    def normal(self, name: str, count: int, std: float) -> Tensor:
        """`count` values of `DTYPE`."""
        if std not in self._scaled:
            self._scaled[std] = (self._values * std).to(DTYPE)
        return self._repeated(self._scaled[std], name, count)

    def bytes(self, name: str, count: int) -> Tensor:
        """`count` bytes, uint8."""
        return self._repeated(self._bytes, name, count)

    def _repeated(self, pool: Tensor, name: str, count: int) -> Tensor:
        start = int(hashlib.sha256(f"{self.seed} {name}".encode()).hexdigest()[:12], 16) % POOL
        out = torch.empty(count, dtype=pool.dtype)
        done = 0
        while done < count:
            piece = pool[start : start + count - done]
            out[done : done + len(piece)] = piece
            done, start = done + len(piece), 0
        return out


def write_weights(folder: Path, quantize: Quantize | None, seed: int = 0) -> None:
    """Writes the weights of all networks of a folder; files that are there are kept.

    Args:
        folder: as `write_configurations` made it.
        quantize: "nf4" stores the transformer's blocks so, as `quantize_blocks` would; the bytes
            are drawn and no plain weight is ever made.
        seed: of the values.

    Raises:
        UserError: nf4 without bitsandbytes.
    """
    noise = Noise(seed)
    for part, network in empty_networks(folder).items():
        packs = quantize == "nf4" and part == "transformer"
        stem = NAME if hasattr(network, "save_config") else "model"
        _write(folder / part, stem, list(entries(network, packs)), noise)


def stored_sizes(folder: Path, quantize: Quantize | None) -> dict[str, int]:
    """Bytes of each network's weights on disk, by part."""
    return {
        part: sum(e.bytes for e in entries(network, quantize == "nf4" and part == "transformer"))
        for part, network in empty_networks(folder).items()
    }


def sampled_sizes(folder: Path, quantize: Quantize | None) -> dict[str, int]:
    """Bytes of each network's file that are mapped when a few values of every weight are read.

    A run identifies its networks so (`train.data.encode.identity`, 256 values a weight). The system
    maps 64 KiB around each value that it finds in memory.
    """
    most = 256 * 2**16
    return {
        part: sum(
            min(entry.bytes, most)
            for entry in entries(network, quantize == "nf4" and part == "transformer")
        )
        for part, network in empty_networks(folder).items()
    }


def entries(network: nn.Module, packs: bool) -> Iterator[Entry]:
    """The tensors of a network, tied ones once.

    Args:
        network: on the meta device.
        packs: stores the linear layers of its blocks in nf4.
    """
    modules = dict(network.named_modules())
    seen: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        owner = modules[name.rpartition(".")[0]]
        if not tensor.is_floating_point() or tensor.ndim < 2:
            fill = 0.0 if name.endswith(("bias", "running_mean", "num_batches_tracked")) else 1.0
            yield Entry(name, tensor, None, fill)
        elif isinstance(owner, nn.Embedding):
            yield Entry(name, tensor, 1.0)
        else:
            std = (tensor.numel() / tensor.shape[0]) ** -0.5
            packed = packs and type(owner) is nn.Linear and BLOCKS in name
            yield Entry(name, tensor, std, packed=packed)


def _write(folder: Path, stem: str, found: list[Entry], noise: Noise) -> None:
    shards: list[list[Entry]] = [[]]
    for entry in found:
        if shards[-1] and sum(e.bytes for e in shards[-1]) + entry.bytes > SHARD:
            shards.append([])
        shards[-1].append(entry)
    count = len(shards)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}.safetensors"
        if count > 1:
            file = f"{stem}-{number:05}-of-{count:05}.safetensors"
        where |= {key: file for entry in shard for key in _keys(entry)}
        if not (folder / file).is_file():
            tensors = {key: x for entry in shard for key, x in _tensors(entry, noise).items()}
            with atomic_write(folder / file) as path:
                save_file(tensors, path, metadata={"format": "pt"})
    if count > 1:
        total = sum(entry.bytes for entry in found)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _keys(entry: Entry) -> list[str]:
    if not entry.packed:
        return [entry.name]
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    state = entry.name.removesuffix(".weight") + STATE
    return [entry.name, *(f"{entry.name}.{part}" for part in parts), state]


def _tensors(entry: Entry, noise: Noise) -> dict[str, Tensor]:
    shape, count = entry.like.shape, entry.like.numel()
    if entry.std is None:
        dtype = DTYPE if entry.like.is_floating_point() else entry.like.dtype
        return {entry.name: torch.full(shape, entry.fill, dtype=dtype)}
    if not entry.packed:
        return {entry.name: noise.normal(entry.name, count, entry.std).view(shape)}
    # The 16 values of nf4 are equally likely in a normal weight, so that even bits are normal.
    scale = entry.std / nf4_code().square().mean().sqrt().item()
    blocks = math.ceil(count / 64)
    absmax = scale * (1 + 0.1 * noise.normal(entry.name, blocks, 1.0).float().clamp(-3, 3))
    packed = noise.bytes(entry.name, math.ceil(count / 2))[:, None]
    state = nf4_state(absmax, shape, DTYPE)
    return {entry.name: packed} | {f"{entry.name}.{key}": x for key, x in state.items()}
