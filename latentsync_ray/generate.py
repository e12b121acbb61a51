"""Lets a trial's UNet generate a clip's mouth: full sampling, to an mp4 with the clip's sound.

latentsync-ray generate RESULTS out.mp4                      # a held-out clip of the prepared set
latentsync-ray generate RESULTS out.mp4 --clip speaker7/00    # a clip of it by name
latentsync-ray generate RESULTS out.mp4 --clip clip.mp4      # yours, aligned
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from latentsync_ray.cli import run_cli
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import load_recipe
from latentsync_ray.export import model_of, stored_weights
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.data.container import VIDEO_SUFFIXES
from latentsync_ray.report.results import find_results
from latentsync_ray.usage import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and generates. Returns the exit status."""
    options = parser().parse_args(arguments)
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


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "generate",
        "RESULTS OUT [options]",
        "Lets a trial's UNet generate a clip's mouth, with the clip's sound.",
        (
            "RESULTS out.mp4                      # a held-out clip",
            "RESULTS out.mp4 --clip speaker7/00   # another clip",
            "RESULTS out.mp4 --clip clip.mp4      # yours, aligned",
        ),
    )
    made.add_argument("results", metavar="RESULTS", help="the folder or URI that a search has printed last")
    made.add_argument("out", type=Path, metavar="OUT", help="the .mp4 to write")
    made.add_argument("--clip", metavar="CLIP", help="its name, or an .mp4 of yours (a held-out clip)")
    made.add_argument("--trial", type=int, metavar="N", help="number of the trial (the best)")
    made.add_argument("--steps", type=int, default=20, metavar="N", help="denoising steps (%(default)s)")
    made.add_argument("--guidance", type=float, default=1.5, metavar="X", help="guidance scale (%(default)s)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (%(default)s)")
    made.add_argument("--audio-encoder", metavar="NETWORK", help="for yours: the set's Whisper (the recipe's)")
    made.add_argument("--resolution", type=int, metavar="N", help="for yours: height and width (the set's)")
    made.add_argument("--mask", type=Path, metavar="FILE", help="for yours: as in preprocess (the set's)")
    return made


if __name__ == "__main__":
    run_cli(main)
