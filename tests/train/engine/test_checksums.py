"""Every file of a checkpoint is verified before a run resumes from it."""

import pytest

from regionroute.errors import UserError
from train.engine.checksums import CHECKSUMS_FILE, verify_checksums, write_checksums


@pytest.fixture
def folder(tmp_path):
    for name in ("engine/state.pt", "trainer.json", "experts/a/weights.bin"):
        path = tmp_path / "step-000001" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 10)
    write_checksums(tmp_path / "step-000001")
    return tmp_path / "step-000001"


@pytest.mark.parametrize("name", ["engine/state.pt", "trainer.json", "experts/a/weights.bin"])
def test_a_flipped_bit_or_a_missing_file_is_named(folder, name):
    verify_checksums(folder)
    data = bytearray((folder / name).read_bytes())
    data[7] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"step-000001: .*\({name} has changed"):
        verify_checksums(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"\({name} is missing\)"):
        verify_checksums(folder)


def test_checkpoints_of_earlier_versions_have_none(folder):
    (folder / CHECKSUMS_FILE).unlink()
    (folder / "trainer.json").write_text("other")
    verify_checksums(folder)


def test_calibration_may_write_into_the_experts_registry(folder):
    (folder / "experts" / "experts.json").write_text("{}")
    write_checksums(folder)
    (folder / "experts" / "experts.json").write_text('{"extra": {"map": {}}}')
    verify_checksums(folder)


def test_flipped_bits_in_the_optimizers_state_do_not_resume(runs, capsys):
    assert runs("run", "train.steps=2") == 0
    engine = runs.output("run") / "checkpoints" / "step-000002" / "engine"
    state = max(engine.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 0x10  # still a readable file: torch.load checks no tensor data
    state.write_bytes(data)
    capsys.readouterr()
    assert runs("run", "train.steps=4") == 2
    error = capsys.readouterr().err
    assert f"(engine/{state.name} has changed since it was written)" in error
    assert "the same command continues from the one before" in error
