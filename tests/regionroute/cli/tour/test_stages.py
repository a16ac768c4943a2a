"""What the tours' stages share."""

import pytest

from regionroute.cli.tour.stages import begin_run, locked_tour, override
from regionroute.config.run import load_config
from regionroute.errors import UserError
from regionroute.files import write_text
from train.engine.output_lock import locked_output


@pytest.mark.parametrize(
    "path", ["out/x", "w/a #b", "w/a: b, c", "null", "1e5", "it's", "[x]", " 🎨"]
)
def test_a_folder_of_any_name_is_the_same_in_a_setting(path):
    config = load_config(None, [override("output", path)])
    assert config.output == path


def test_a_run_of_unknown_origin_or_of_another_process_is_left_alone(tmp_path):
    run, pairs = tmp_path / "run", tmp_path / "pairs"
    with pytest.raises(UserError, match="pairs: no manifest"):
        begin_run(run, pairs, seed=0)
    write_text(pairs / "manifest.jsonl", "one")
    write_text(run / "experts.json", "of a long training")
    with pytest.raises(UserError, match="run: nothing says what this run was trained on: delete"):
        begin_run(run, pairs, seed=0)
    assert [file.name for file in run.iterdir()] == ["experts.json"]

    ours = tmp_path / "ours"
    begin_run(ours, pairs, seed=0)
    kept = ours / "checkpoint"
    kept.touch()
    with locked_output(ours), pytest.raises(UserError, match="another run is writing"):
        begin_run(ours, pairs, seed=1)
    assert kept.exists()
    begin_run(ours, pairs, seed=0)
    assert kept.exists()
    begin_run(ours, pairs, seed=1)
    assert not kept.exists()


def test_two_tours_do_not_write_to_one_folder(tmp_path):
    out = tmp_path / "out"
    with locked_tour(out), pytest.raises(UserError, match="out: another run is writing"):
        locked_tour(out).__enter__()
    # A stage that outlived its tour.
    with locked_output(out / "run"), pytest.raises(UserError, match="run: another run is writing"):
        locked_tour(out).__enter__()
    with locked_tour(out):
        pass
    assert list(out.rglob(".lock")) == []
