"""The working folder that `latentsync-ray init` writes."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.init import main
from latentsync_ray.latentsync.config import ComponentsConfig
from latentsync_ray.shipped import shipped_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("there_already", [False, True])
def test_what_is_shipped_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there_already: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if there_already:
        Path("demo").mkdir()
    assert main(["demo"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    written = {path.relative_to("demo") for path in Path("demo").rglob("*") if path.is_file()}
    shipped = {
        path.relative_to(ROOT)
        for name in ("configs", "search_spaces", "assets/demo")
        for path in (ROOT / name).rglob("*")
        if path.is_file()
    }
    assert written == shipped | {Path(".gitignore")}
    different = filecmp.cmpfiles(ROOT, "demo", sorted(map(str, shipped)), shallow=False)[1:]
    assert different == ([], [])
    assert Path("demo/.gitignore").read_text().split() == ["/data/", "/results/"]


def test_the_demo_finds_its_networks_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main([str(tmp_path / "work" / "demo")])
    monkeypatch.chdir(tmp_path / "work" / "demo")
    search, recipe = load_search("search_spaces/transition.yaml", [])
    assets = tmp_path / "work" / "demo" / "assets" / "demo"
    expected = {"vae": "autoencoder", "audio_encoder": "audio_encoder", "syncnet": "syncnet", "lpips": "lpips"}
    folders = {name: str(assets / folder) for name, folder in {**expected, "video_encoder": "video_encoder"}.items()}
    assert recipe.components == ComponentsConfig(**folders)
    assert all(Path(folder, "config.json").is_file() for folder in folders.values())
    assert Path(recipe.data.folder) == tmp_path / "work" / "demo" / "data" / "demo"
    assert Path(search.storage).absolute() == tmp_path / "work" / "demo" / "results"


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name in ("full", "file", "link"):
        with pytest.raises(UserError, match=f"{name}: must be a new or an empty folder"):
            main([name])
    with pytest.raises(UserError, match="file/demo: cannot be written"):
        main(["file/demo"])
    with pytest.raises(UserError, match="must not be the current folder"):
        main(["."])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file", "full", "link", "notes.txt"]


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "configs").symlink_to(shipped_files() / "configs")  # and then nothing
    monkeypatch.setattr("latentsync_ray.init.shipped_files", lambda: tmp_path / "package")
    with pytest.raises(UserError, match="demo: cannot be written"):
        main([str(tmp_path / "demo")])
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
