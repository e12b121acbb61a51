"""What is checked before a search starts: whether the SyncNet is a judge to be trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe, with_overrides
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.inputs import prepared_clips, ready_inputs, source_fingerprint
from latentsync_ray.latentsync.models.pretrained import hub_revision
from latentsync_ray.latentsync.syncnet.config import load_syncnet
from latentsync_ray.latentsync.syncnet.training import build_syncnet
from latentsync_ray.store import Store

DEMO = Path(__file__).resolve().parents[3] / "configs" / "demo"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> LatentSyncRecipe:
    small = {"num_speakers": 3, "clips_per_speaker": 1, "num_validation_speakers": 2, "num_frames": 64}
    overrides = {f"data.synthetic.{name}": value for name, value in small.items()}
    return load_recipe(DEMO, overrides | {"data.folder": str(tmp_path_factory.mktemp("data"))})


def judged(store: Store, recipe: LatentSyncRecipe) -> tuple[float | None, str | None]:
    """The accuracy of a recipe's SyncNet, and the warning about it."""
    inputs = ready_inputs(recipe, store)
    return inputs.figures.get("syncnet_accuracy"), next(iter(inputs.warnings), None)


def test_drawn_clips_are_found_again(recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    """By the recipe, and by the one that a search writes into `best`, which names their own folder."""
    store = Store(str(tmp_path))
    inputs = ready_inputs(recipe, store)
    ready = inputs.recipe
    folder = Path(ready.data.folder)
    assert folder.parent == Path(recipe.data.folder)
    before = sorted(folder.rglob("*"))
    assert ready_inputs(ready, store) == inputs
    assert prepared_clips(ready).folder == prepared_clips(recipe).folder == folder
    assert sorted(folder.rglob("*")) == before


def test_the_demos_syncnet_is_good_enough(
    recipe: LatentSyncRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    accuracy, warning = judged(store, recipe)
    assert accuracy is not None and accuracy > 0.85
    assert warning is None

    # What was measured is not measured again.
    (file,) = tmp_path.glob("syncnets/*.json")
    store.write_json(f"syncnets/{file.name}", {"balanced_accuracy": 0.849})
    poor, warning = judged(store, recipe)
    assert poor == 0.849
    assert warning is not None and "is 84.9%" in warning

    # Unless it is damaged.
    file.write_text(file.read_text().replace("0.849", "0.949"))
    assert judged(store, recipe) == (accuracy, None)
    assert capsys.readouterr().out == f"{file}: does not match its checksum; it is measured again\n"
    assert judged(store, recipe) == (accuracy, None)
    assert capsys.readouterr().out == ""


def test_an_untrained_syncnet_is_warned_of(recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    build_syncnet(load_syncnet(DEMO / "syncnet.yaml", [])).save_pretrained(tmp_path / "syncnet")
    untrained = with_overrides(recipe, {"components.syncnet": str(tmp_path / "syncnet")})
    accuracy, warning = judged(Store(str(tmp_path / "store")), untrained)
    assert accuracy is not None and accuracy < 0.6
    assert warning is not None and len(warning.splitlines()) == 1
    for part in ("components.syncnet", "85% or more", f"is {accuracy:.1%}", "latentsync_ray.train_syncnet"):
        assert part in warning


def test_recipes_without_a_syncnet_to_judge(recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    none = {"components.syncnet": None, "second_stage.loss.sync": 0, "validation.objective.sync": 0}
    assert judged(store, with_overrides(recipe, none)) == (None, None)
    assert not list(tmp_path.iterdir())


def test_clips_that_are_too_short_to_measure(recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    short = with_overrides(recipe, {"data.synthetic.num_frames": 15})
    accuracy, warning = judged(Store(str(tmp_path)), short)
    assert accuracy is None
    assert warning is not None and "cannot be measured" in warning


@pytest.mark.parametrize("text", ["{}", "no JSON"])
def test_a_syncnet_that_cannot_be_used(text: str, recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    (tmp_path / "syncnet").mkdir()
    (tmp_path / "syncnet" / "config.json").write_text(text)
    broken = with_overrides(recipe, {"components.syncnet": str(tmp_path / "syncnet")})
    with pytest.raises(UserError, match=r"components\.syncnet: .* cannot be used"):
        judged(Store(str(tmp_path / "store")), broken)


def test_a_syncnet_for_another_number_of_frames(recipe: LatentSyncRecipe, tmp_path: Path) -> None:
    other = with_overrides(recipe, {"data.num_frames": 12})
    with pytest.raises(UserError, match=r"cannot be used .* name a StableSyncNet for data\.num_frames \(12\)"):
        judged(Store(str(tmp_path)), other)


def test_a_folder_is_that_folder_whether_or_not_its_name_begins_with_a_dot(
    recipe: LatentSyncRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute, so that it holds in every process, and named by its contents."""
    folder = tmp_path / "models" / "autoencoder"
    shutil.copytree(recipe.components.vae, folder)
    monkeypatch.chdir(tmp_path)
    found = with_overrides(recipe, {"components.vae": "models/autoencoder"}).components.vae
    assert found == str(folder)
    before = source_fingerprint("components.vae", found)
    assert before == source_fingerprint("components.vae", recipe.components.vae)
    (folder / "config.json").write_text("{}")
    assert source_fingerprint("components.vae", found) != before
    assert with_overrides(recipe, {"components.vae": "owner/name"}).components.vae == "owner/name"


def test_names_in_a_file_are_relative_to_it_or_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DEMO, tmp_path / "configs" / "demo")
    file = tmp_path / "configs" / "demo" / "recipe.yaml"
    file.write_text(
        file.read_text()
        .replace("../../assets/demo/autoencoder", "models/vae")
        .replace("../../assets/demo/lpips", "models/lpips")
        .replace("../../assets/demo/syncnet", "hub/syncnet")
    )
    (tmp_path / "configs" / "demo" / "models" / "vae").mkdir(parents=True)
    (tmp_path / "models" / "vae").mkdir(parents=True)
    (tmp_path / "models" / "lpips").mkdir()
    monkeypatch.chdir(tmp_path)
    components = load_recipe(Path("configs/demo")).components
    assert components.vae == str(tmp_path / "configs" / "demo" / "models" / "vae")
    assert components.lpips == str(tmp_path / "models" / "lpips")
    assert components.syncnet == "hub/syncnet"


def test_a_hub_id_counts_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's cache has it, where the hub is not asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fingerprints = [source_fingerprint("components.vae", "owner/name")]
    for commit in ("a" * 40, "b" * 40):
        folder = tmp_path / "models--owner--name"
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        assert hub_revision("owner/name") == commit
        fingerprints.append(source_fingerprint("components.vae", "owner/name"))
    assert len(set(fingerprints)) == 3
    assert hub_revision("owner/other") is None and hub_revision("no hub id at all") is None
