"""A file appears with all that is in it, or not at all."""

from pathlib import Path

import pytest

from latentsync_ray.core.atomic import new_file


def test_a_file_appears_at_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    with new_file(path) as made:
        made.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(path) as made:
        made.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
