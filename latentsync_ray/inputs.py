"""What a search reads before it starts: prepared clips and frozen networks, checked and named by fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
import pkgutil
from pathlib import Path

from latentsync_ray.config import Recipe, UserError
from latentsync_ray.configfiles import STAGE_FILES
from latentsync_ray.data.clips import PreparedClips
from latentsync_ray.data.synthetic import synthetic_clips
from latentsync_ray.learn.autoencoder import load_autoencoder, weights_sha256
from latentsync_ray.learn.stage import Training
from latentsync_ray.prepare import prepare
from latentsync_ray.segment import FIRST_STAGE, SECOND_STAGE, digest
from latentsync_ray.transition import should_transition


def ready_inputs(recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
    """Checks that a recipe's networks and clips are there, drawing synthetic clips if it asks for them.

    Returns:
        The recipe with the folder of the clips filled in, and a SHA-256 for the data and each frozen network.

    Raises:
        UserError: Something is missing, or does not fit the rest.
    """
    components = {name: source for name, source in dataclasses.asdict(recipe.components).items() if source}
    fingerprints = {name: _fingerprint(f"components.{name}", source) for name, source in components.items()}
    _check_stages(recipe)
    vae_sha256 = weights_sha256(load_autoencoder(recipe.components.vae))

    if recipe.data.synthetic is not None:
        recipe = _with_synthetic_clips(recipe, fingerprints)
    clips = PreparedClips.open(recipe.data.folder)
    if vae_sha256 != clips.index.vae_sha256:
        raise UserError(
            f"components.vae: must be the autoencoder that {recipe.data.folder} was prepared with, got "
            f"{recipe.components.vae}; name that one, or prepare the clips again"
        )
    clips.train_sample(recipe.seed, 0, 0, recipe.data.num_frames)
    clips.validation_samples(recipe.validation.num_samples, recipe.data.num_frames, recipe.validation.seed)
    # The audio encoder is not used in training: what it gave is in the prepared clips.
    fingerprints.pop("audio_encoder", None)
    return recipe, fingerprints | {"data": clips.fingerprint}


def _with_synthetic_clips(recipe: Recipe, fingerprints: dict[str, str]) -> Recipe:
    """Draws and prepares the clips into a folder named by their settings, unless it is there."""
    settings = recipe.data.synthetic
    audio_encoder = recipe.components.audio_encoder
    assert settings is not None and audio_encoder is not None
    made_from = [dataclasses.asdict(settings), fingerprints["vae"], fingerprints["audio_encoder"]]
    folder = Path(recipe.data.folder) / digest(made_from)[:12]
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
            vae=recipe.components.vae,
            audio_encoder=audio_encoder,
            resolution=settings.resolution,
            validation=[f"speaker{number}/*" for number in held_out],
        )
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folder=str(folder)))


def _fingerprint(name: str, source: str) -> str:
    """SHA-256 over the names and contents of a folder's files, or of a file; of the name itself for a hub id."""
    path = Path(source)
    hasher = hashlib.sha256()
    if not path.is_absolute():
        hasher.update(f"hub {source}".encode())
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


def _check_stages(recipe: Recipe) -> None:
    """Has the training look at both stages, so that a wrong setting is found before anything is started."""
    try:
        training: type[Training] = pkgutil.resolve_name(recipe.training)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"training: must be module:class, got {recipe.training}: {error}; correct it") from None
    starting = SECOND_STAGE if should_transition(recipe.transition, []) else FIRST_STAGE
    for stage in STAGE_FILES:
        try:
            training.check(getattr(recipe, stage), recipe.components.unet if stage == starting else None)
        except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            raise UserError(f"{stage}: must be a stage that can be built: {error}; correct its file") from None
