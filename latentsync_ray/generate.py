"""Lets a trial's UNet generate a clip's mouth: full sampling, to an mp4 with the clip's sound.

latentsync-ray generate RESULTS out.mp4                       # a held-out clip of the prepared set
latentsync-ray generate RESULTS out.mp4 --clip speaker7/00    # a clip of it by name
latentsync-ray generate RESULTS out.mp4 --clip clip.mp4       # an aligned clip of yours
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.export import model_of, stored_weights
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.data.container import VIDEO_SUFFIXES
from latentsync_ray.report.results import find_results


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and generates. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=program("generate"), description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", help="the folder or URI that a search has printed last")
    parser.add_argument("out", type=Path, help="the .mp4 to write")
    parser.add_argument("--clip", help="name in the prepared set, or an aligned .mp4 with sound (a held-out clip)")
    parser.add_argument("--trial", type=int, help="number of the trial (the best)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=1.5, help="guidance scale (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    own = parser.add_argument_group("an .mp4 of yours", "With --resolution and --mask no prepared set is needed.")
    own.add_argument("--audio-encoder", help="the Whisper that the set was prepared with (the recipe's)")
    own.add_argument("--resolution", type=int, help="height and width in pixels (the set's)")
    own.add_argument("--mask", type=Path, help="as preprocess was given (the set's, resized)")
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".mp4":
        raise UserError(f"{options.out}: must be an .mp4; name another file")
    if not 1 <= options.steps <= 1000:
        raise UserError(f"--steps: must be from 1 to 1000, got {options.steps}; 20 is usual")
    is_own = options.clip is not None and Path(options.clip).suffix.lower() in VIDEO_SUFFIXES
    for name in ("audio_encoder", "resolution", "mask"):
        if getattr(options, name) is not None and not is_own:
            raise UserError(
                f"--{name.replace('_', '-')}: is for an .mp4 of yours; leave it out, or name one by --clip"
            )

    segment, weights = stored_weights(options.results, options.trial)
    store, folder = find_results(options.results)
    with tempfile.TemporaryDirectory() as scratch:
        store.download(f"{folder}/best", Path(scratch))
        recipe = load_recipe(Path(scratch))
    if not isinstance(recipe, LatentSyncRecipe):
        raise UserError(f"{options.results}: must be a search of LatentSync's, got {recipe.training}; name another")

    from latentsync_ray.latentsync.generation import Generator, OwnClip  # torch takes seconds

    generator = Generator(recipe, model_of(segment), weights)
    clip = options.clip
    if is_own:
        clip = OwnClip(Path(options.clip), options.audio_encoder, options.resolution, options.mask)
    name = generator.write(options.out, clip, options.steps, options.guidance, options.seed)
    print(f"wrote {options.out}, from {name}")
    return 0


if __name__ == "__main__":
    run_cli(main)
