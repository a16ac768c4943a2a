"""Object stores for tests: in memory, a folder, and servers of S3 and Google Cloud Storage."""

import contextlib
import socket
import urllib.request

import fsspec
import pytest

LOCAL = ("memory", "file")
SERVED = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("s3", "gs"))


@contextlib.contextmanager
def store(kind, folder, monkeypatch):
    """The URL of an empty folder in a store.

    Args:
        kind: "memory", "file", "s3" or "gs".
        folder: of this machine, for the store's files.
        monkeypatch: sets what the store's library reads in the environment.
    """
    if kind == "memory":
        files = fsspec.filesystem("memory")
        if files.exists("/bucket"):
            files.rm("/bucket", recursive=True)
        yield "memory://bucket/data"
    elif kind == "file":
        yield f"file://{folder}/bucket/data"
    else:
        with {"s3": _s3, "gs": _gs}[kind](folder, monkeypatch) as url:
            fsspec.get_filesystem_class(kind).clear_instance_cache()  # of an earlier server
            fsspec.filesystem(kind).mkdir("bucket")
            yield url


@contextlib.contextmanager
def _s3(folder, monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'regionroute[remote]'")
    moto = pytest.importorskip("moto.server", reason="moto is missing: pip install 'moto[server]'")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=30).close()  # what is in it outlives the server
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield "s3://bucket/data"
    finally:
        server.stop()


@contextlib.contextmanager
def _gs(folder, monkeypatch):
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'regionroute[remote]'")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="pip install gcp-storage-emulator"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield "gs://bucket/data"
    finally:
        server.stop()
