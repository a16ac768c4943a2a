"""Which JSON beside an image is its settings file."""

from regionroute.settings_files import is_settings_file


def test_settings_files_are_recognised(tmp_path):
    for name, content, ours in (
        ("a.json", '{"versions": {"regionroute": "1.0"}, "prompt": "x"}', True),
        ("run.json", '{"versions": {"regionroute": "1.0"}, "best_step": 7}', False),
        ("b.json", '{"version": "5.2.1", "shapes": [], "imagePath": "dog.jpg"}', False),
        ("c.json", '{"versions": "regionroute"}', False),
        ("d.json", "[]", False),
        ("e.json", "not JSON", False),
        ("f.json", "[" * 50_000, False),
    ):
        (tmp_path / name).write_text(content)
        assert is_settings_file(tmp_path / name) == ours
    assert not is_settings_file(tmp_path / "missing.json")
