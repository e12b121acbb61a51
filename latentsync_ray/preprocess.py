"""Turns videos of faces with sound into a prepared set: all that the frozen networks can compute beforehand.

latentsync-ray preprocess CLIPS OUT --vae FOLDER_OR_HUB_ID --audio-encoder FOLDER_OR_HUB_ID
latentsync-ray preprocess FOOTAGE OUT --raw --vae FOLDER_OR_HUB_ID --audio-encoder FOLDER_OR_HUB_ID
"""

from __future__ import annotations

import argparse
from pathlib import Path

from latentsync_ray.cli import program, run_cli
from latentsync_ray.config.schema import is_path


def _located(network: str) -> str:
    """Makes the name of a path hold wherever a process runs; leaves hub ids alone."""
    return str(Path(network).expanduser().absolute()) if is_path(network, Path.cwd()) else network


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and prepares. Returns the exit status."""
    parser = argparse.ArgumentParser(prog=program("preprocess"), description="Prepares videos for training.")
    parser.add_argument("videos", type=Path, help="folder of videos with sound, searched recursively")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--raw", action="store_true", help="footage: find, align and cut out faces (aligned clips)")
    parser.add_argument("--vae", required=True, help="folder or hub id of a diffusers autoencoder")
    parser.add_argument("--audio-encoder", required=True, help="folder or hub id of a Whisper model or its encoder")
    parser.add_argument("--resolution", type=int, default=256, help="height and width in pixels (%(default)s)")
    parser.add_argument(
        "--validation",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="clips to hold out, such as 'speaker4/*' (about every fifth)",
    )
    parser.add_argument("--mask", type=Path, help="picture, black where to generate (an ellipse over the lower face)")
    parser.add_argument("--face-models", type=Path, help="folder with MediaPipe's mediapipe/modules (its wheel's)")
    args = parser.parse_args(arguments)

    # Ray and torch take seconds, which the help and a mistyped option need not.
    from latentsync_ray.latentsync.data.facemesh import check_installed
    from latentsync_ray.latentsync.preparation.pipeline import Settings
    from latentsync_ray.latentsync.preparation.prepare import stderr_console
    from latentsync_ray.latentsync.preparation.run import find_sources, prepare_files

    sources, notices = find_sources(args.videos)
    if args.raw:
        check_installed(args.face_models)
    settings = Settings(
        vae=_located(args.vae),
        audio_encoder=_located(args.audio_encoder),
        resolution=args.resolution,
        mask=args.mask and args.mask.absolute(),
        raw=args.raw,
        face_models=args.face_models and args.face_models.absolute(),
    )
    for notice in notices:
        stderr_console().print(notice)
    prepare_files(sources, args.out.absolute(), settings, args.validation)
    return 0


if __name__ == "__main__":
    run_cli(main)
