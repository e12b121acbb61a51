"""A file appears with all that is in it, or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentsync_ray.core.atomic import create_file, new_file, new_folder


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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_follows_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    """safetensors 0.8 writes files that only their owner reads."""
    before = os.umask(umask)
    try:
        with new_file(tmp_path / "a" / "state.safetensors") as made:
            save_file({"weight": torch.zeros(1)}, made)
        with new_folder(tmp_path / "b") as made:
            save_file({"weight": torch.zeros(1)}, made / "state.safetensors")
    finally:
        os.umask(before)
    for folder in ("a", "b"):
        assert stat.S_IMODE((tmp_path / folder / "state.safetensors").stat().st_mode) == mode


def test_file_and_folders_are_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: each new folder's name, the content, and at last the name of the file."""
    path, synced = tmp_path / "a" / "b" / "file", list[tuple[str, bool]]()

    def note(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((str(place.relative_to(tmp_path)).partition(".")[0] or ".", path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    with new_file(path) as made:
        made.write_text("content")
    assert synced == [(".", False), ("a", False), ("a/b/file", False), ("a/b", True)]


def test_a_file_is_created_with_its_content_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed on the way, or a power cut, leaves no empty file that counts as created."""
    path, seen = tmp_path / "a" / "file", list[bytes | None]()
    sync = os.fsync

    def note(descriptor: int) -> None:
        seen.append(path.read_bytes() if path.exists() else None)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    assert create_file(path, b"one") and not create_file(path, b"two")
    assert seen[:3] == [None, None, b"one"]  # the folder's name, the content, the file's name
    assert path.read_bytes() == b"one" and list(path.parent.iterdir()) == [path]


def test_a_file_is_created_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    assert create_file(path, b"one") and not create_file(path, b"two")
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]
