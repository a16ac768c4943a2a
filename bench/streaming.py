"""Reading training data from a streamed cache, a local one, and litdata, in one order.

    python bench/streaming.py            # pip install litdata, else that part is skipped

One process reads an epoch of samples (two latents, a mask) from files of 64 samples that lie in
another folder. Memory, or litdata's folder, holds as many files as a window has, and half more.
"Fetches a file" is how often the epoch fetched each file: 1 is the least. Both orders are drawn by
training's own code; litdata is asked for samples by number. Its own order is also asked for, for
one and for two processes: the same global batches would make a run independent of their number.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import add_result_argument, provenance

from regionroute.files import write_json

FILE, WINDOW, BATCH = 64, 4, 8
SHAPES = {"context": (16, 16, 16), "target": (16, 16, 16), "mask": (1, 16, 16)}


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2048, help="samples (2048)")
    add_result_argument(parser, "streaming")
    args = parser.parse_args()
    result: dict[str, Any] = provenance(("torch", "safetensors", "fsspec", "litdata"))
    result |= {"samples": args.samples, "samples a file": FILE, "window in files": WINDOW}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result["caches"] = caches(Path(folder), args.samples)
        if importlib.util.find_spec("litdata"):
            result["litdata"] = litdata(Path(folder), args.samples)
    write_json(args.result, result)
    for name, value in result.items():
        print(f"{name}: {value}")
    return 0


def sample(number: int) -> dict[str, torch.Tensor]:
    """The tensors of a sample."""
    draw = torch.Generator().manual_seed(number)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def orders(count: int) -> dict[str, list[int]]:
    """An epoch in each order."""
    from train.data.order import BlockShuffle, SampleOrder

    blocks = SampleOrder(count, 0, shuffle=BlockShuffle(FILE, WINDOW), global_batch=BATCH)
    plain = SampleOrder(count, 0)
    return {"blocks": [blocks[i] for i in range(count)], "all": [plain[i] for i in range(count)]}


def read(order: list[int], load: Callable[[int], Any]) -> float:
    """Samples a second."""
    begin = time.perf_counter()
    for number in order:
        load(number)
    return round(len(order) / (time.perf_counter() - begin), 1)


def caches(folder: Path, count: int) -> dict[str, Any]:
    """The project's caches; a file has one kind of entry here, all tensors of its samples."""
    import train.data.cache
    from train.data.cache import Cache, CacheEntry
    from train.data.streamed import StreamedCache

    train.data.cache.SHARD_ENTRIES = FILE
    keys = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(count)]
    entries = [CacheEntry("all", key, lambda n=n: sample(n)) for n, key in enumerate(keys)]
    url = f"file://{folder}/remote"
    StreamedCache(url, 1).fill(entries, show=False)
    local = Cache(folder / "remote")
    files = list((folder / "remote" / "all").glob("*.safetensors"))
    memory = 3 * WINDOW // 2 * files[0].stat().st_size
    found: dict[str, Any] = {}
    for name, order in orders(count).items():
        streamed = StreamedCache(url, memory)
        streamed.scan("all"), local.scan("all")
        found[name] = {
            "local, samples a second": read(order, lambda n: local.load("all", keys[n])),
            "streamed, samples a second": read(order, lambda n, s=streamed: s.load("all", keys[n])),
            "streamed, fetches a file": round(streamed.fetched / len(files), 2),
        }
    return found


def litdata(folder: Path, count: int) -> dict[str, Any]:
    """The same samples from litdata."""
    import litdata as library
    from litdata.streaming.cache import Cache
    from litdata.streaming.downloader import LocalDownloader

    writer = Cache(str(folder / "chunks"), chunk_size=FILE)
    for number in range(count):
        writer[number] = sample(number)
    writer.done()
    writer.merge()
    chunks = list((folder / "chunks").glob("*.bin"))
    held = 3 * WINDOW // 2 * chunks[0].stat().st_size
    fetched: list[str] = []
    original = LocalDownloader.download_file

    def counted(self: Any, remote: str, local: str, *more: Any, **named: Any) -> Any:
        fetched.append(remote)
        return original(self, remote, local, *more, **named)

    LocalDownloader.download_file = counted
    found: dict[str, Any] = {"version": library.__version__}
    for name, order in orders(count).items():
        data = library.StreamingDataset(
            f"local:{folder / 'chunks'}", str(folder / f"held-{name}"), max_cache_size=held
        )
        data[0]
        data.on_demand_bytes = False  # fetch whole files and hold them
        fetched.clear()
        try:
            found[name] = {"samples a second": read(order, data.__getitem__)}
        except Exception as error:  # a missing file or a wait of 120 s, by the version
            found[name] = {"failed": type(error).__name__}
        files = [file for file in fetched if file.endswith(".bin")]
        found[name]["fetches a file"] = round(len(files) / len(chunks), 2)
    found["own order, the same global batches for one and two processes"] = same_batches(folder)
    return found


def same_batches(folder: Path) -> bool:
    """Whether litdata's shuffle puts the same samples into each global batch of 8."""
    import litdata as library
    from litdata.utilities.env import _DistributedEnv

    batches = []
    for world in (1, 2):
        parts = []
        for rank in range(world):
            data = library.StreamingDataset(str(folder / "chunks"), shuffle=True, seed=0)
            data.distributed_env = _DistributedEnv(world, rank, 1)
            data.set_batch_size(BATCH // world)
            parts.append([item["context"].sum().item() for item in data])
        size = BATCH // world
        steps = min(map(len, parts)) // size
        batches.append(
            [{v for part in parts for v in part[k * size : (k + 1) * size]} for k in range(steps)]
        )
    steps = min(map(len, batches))
    return batches[0][:steps] == batches[1][:steps]


if __name__ == "__main__":
    raise SystemExit(main())
