"""What a search reads before it starts: prepared clips and frozen networks, checked and named by fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from latentsync_ray.cli import program
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import STAGE_FILES
from latentsync_ray.config.recipe import FIRST_STAGE, SECOND_STAGE
from latentsync_ray.core.hashing import digest
from latentsync_ray.core.training import Inputs, Notes
from latentsync_ray.core.transition import should_transition
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.data.clips import FORMAT, PreparedClips
from latentsync_ray.latentsync.data.config import DataConfig
from latentsync_ray.latentsync.data.synthetic import synthetic_clips
from latentsync_ray.latentsync.models.autoencoder import load_autoencoder, weights_sha256
from latentsync_ray.latentsync.models.pretrained import hub_revision, load_pretrained
from latentsync_ray.latentsync.preparation.prepare import prepare
from latentsync_ray.latentsync.stage import check_stage
from latentsync_ray.latentsync.syncnet.model import StableSyncNet
from latentsync_ray.latentsync.syncnet.training import sync_accuracy
from latentsync_ray.latentsync.syncnet.windows import held_out_windows
from latentsync_ray.store import DamagedEntryError

MIN_SYNC_ACCURACY = 0.85
"""A SyncNet below is called a poor guide; LatentSync's own tells 94 % on HDTF (https://arxiv.org/abs/2412.09262)."""
NUM_SYNC_WINDOWS = 128
"""On so many windows at most it is measured, which may be on a CPU."""


def ready_inputs(recipe: LatentSyncRecipe, notes: Notes) -> Inputs[LatentSyncRecipe]:
    """Checks that a recipe's networks and clips are there, drawing synthetic clips if it asks for them.

    Args:
        recipe: What is asked for.
        notes: Where the accuracy of a SyncNet is kept, so that it is measured once.

    Returns:
        The recipe with the folder of the clips filled in, a SHA-256 for the data and each frozen network, and
        `syncnet_accuracy`, if the recipe names a SyncNet and its held-out clips are long enough.

    Raises:
        UserError: Something is missing, or does not fit the rest.
    """
    components = {name: source for name, source in vars(recipe.components).items() if source}
    fingerprints = {name: source_fingerprint(f"components.{name}", source) for name, source in components.items()}
    _check_stages(recipe)
    clips = prepared_clips(recipe)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folder=str(clips.folder)))
    clips.train_sample(recipe.seed, 0, 0, recipe.data.num_frames)
    clips.validation_samples(recipe.validation.num_samples, recipe.data.num_frames, recipe.validation.seed)
    # The audio encoder is not used in training: what it gave is in the prepared clips.
    fingerprints.pop("audio_encoder", None)
    fingerprints["data"] = clips.fingerprint
    accuracy, warning = check_syncnet(notes, recipe, fingerprints)
    figures = {} if accuracy is None else {"syncnet_accuracy": accuracy}
    return Inputs(recipe, fingerprints, figures, () if warning is None else (warning,))


def prepared_clips(recipe: LatentSyncRecipe) -> PreparedClips:
    """Opens a recipe's prepared clips, drawing synthetic ones if it asks for them.

    Args:
        recipe: What is asked for.

    Raises:
        UserError: They or the autoencoder are missing, or do not fit each other.
    """
    data, components = recipe.data, recipe.components
    vae_sha256 = weights_sha256(load_autoencoder(components.vae))
    if data.synthetic is not None:
        assert components.audio_encoder is not None
        data = drawn_clips(data, components.vae, components.audio_encoder)
    clips = PreparedClips.open(data.folder)
    if vae_sha256 != clips.index.vae_sha256:
        raise UserError(
            f"components.vae: must be the autoencoder that {data.folder} was prepared with, got {components.vae}; "
            "name that one, or prepare the clips again"
        )
    return clips


def check_syncnet(
    notes: Notes, recipe: LatentSyncRecipe, fingerprints: Mapping[str, str]
) -> tuple[float | None, str | None]:
    """Measures, once for a store, whether the recipe's SyncNet tells held-out clips well enough for the sync loss.

    Args:
        notes: Where what was measured is kept.
        recipe: From `ready_inputs`.
        fingerprints: From `ready_inputs`.

    Returns:
        The balanced accuracy from 0 to 1 (`syncnet.training.sync_accuracy`), None if it is not measured: the
        recipe names no SyncNet, or its held-out clips are too short. And a warning, None if all is well.

    Raises:
        UserError: The SyncNet cannot be loaded or does not fit the clips.
    """
    source, num_frames = recipe.components.syncnet, recipe.data.num_frames
    if source is None:
        return None, None
    try:
        windows = held_out_windows(PreparedClips.open(recipe.data.folder), num_frames, NUM_SYNC_WINDOWS)
    except UserError as error:
        return None, f"components.syncnet: its accuracy cannot be measured: {error}"
    file = f"syncnets/{digest([fingerprints['syncnet'], fingerprints['data'], num_frames, NUM_SYNC_WINDOWS])}.json"
    try:
        figures = notes.read_json(file)
    except DamagedEntryError as error:
        print(f"{error}; it is measured again", flush=True)
        figures = None
    if figures is None:
        figures = _syncnet_figures(source, num_frames, windows)
        notes.write_json(file, figures)
    accuracy = float(figures["balanced_accuracy"])
    if accuracy >= MIN_SYNC_ACCURACY:
        return accuracy, None
    return accuracy, (
        f"components.syncnet: balanced accuracy on the validation clips should be {MIN_SYNC_ACCURACY:.0%} or more, "
        f"is {accuracy:.1%}, so the sync loss may mislead stage two; train one on such clips "
        f"({program('train-syncnet')})"
    )


def _syncnet_figures(source: str, num_frames: int, windows: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    try:
        syncnet = load_pretrained(StableSyncNet, source)
        return sync_accuracy(syncnet.to("cuda" if torch.cuda.is_available() else "cpu"), windows)
    except (OSError, TypeError, ValueError, LookupError, RuntimeError) as error:
        remedy = f"name a StableSyncNet for data.num_frames ({num_frames}) and the clips' resolution"
        raise UserError(f"components.syncnet: {source} cannot be used ({error}); {remedy}") from None


def drawn_clips(data: DataConfig, vae: str, audio_encoder: str) -> DataConfig:
    """Draws and prepares synthetic clips into a folder named by what they are made from, unless it is there.

    Args:
        data: With `synthetic`, and the folder in which that one is made, or that one itself.
        vae: The autoencoder that they are prepared with.
        audio_encoder: The Whisper that they are prepared with.

    Returns:
        The same with the clips' own folder.
    """
    settings = data.synthetic
    assert settings is not None
    networks = {"vae": vae, "audio_encoder": audio_encoder}
    made_from = [FORMAT, dataclasses.asdict(settings), *(source_fingerprint(*source) for source in networks.items())]
    folder, name = Path(data.folder), digest(made_from)[:12]
    if folder.name != name:  # as it is where a search has written its recipe
        folder /= name
    if not folder.exists():
        held_out = range(settings.num_speakers - settings.num_validation_speakers, settings.num_speakers)
        prepare(
            synthetic_clips(
                settings.num_speakers,
                settings.clips_per_speaker,
                settings.num_frames,
                settings.resolution,
                settings.seed,
            ),
            folder,
            vae=vae,
            audio_encoder=audio_encoder,
            resolution=settings.resolution,
            validation=[f"speaker{number}/*" for number in held_out],
        )
    return dataclasses.replace(data, folder=str(folder))


def source_fingerprint(name: str, source: str) -> str:
    """SHA-256 over the names and contents of a folder's files, or of a file; over name and revision for a hub id.

    The revision is left out where neither the hub nor its cache on this machine knows it.

    Raises:
        UserError: There is no such file or folder; says under which `name` it was asked for.
    """
    path = Path(source)
    hasher = hashlib.sha256()
    if not path.is_absolute():
        hasher.update(f"hub {source} {hub_revision(source)}".encode())
        return hasher.hexdigest()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise UserError(f"{name}: must be a folder with a model or a hub id, got {source}; correct the path")
    for file in files:
        hasher.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                hasher.update(chunk)
    return hasher.hexdigest()


def _check_stages(recipe: LatentSyncRecipe) -> None:
    """Has the training look at both stages, so that a wrong setting is found before anything is started."""
    starting = SECOND_STAGE if should_transition(recipe.transition, []) else FIRST_STAGE
    for stage in STAGE_FILES:
        try:
            check_stage(getattr(recipe, stage), recipe.components.unet if stage == starting else None)
        except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            raise UserError(f"{stage}: must be a stage that can be built: {error}; correct its file") from None
