"""Turns videos of faces with sound into a prepared set: all that the frozen networks can compute beforehand.

latentsync-ray preprocess CLIPS OUT --vae FOLDER_OR_HUB_ID --audio-encoder FOLDER_OR_HUB_ID
latentsync-ray preprocess FOOTAGE OUT --raw --vae FOLDER_OR_HUB_ID --audio-encoder FOLDER_OR_HUB_ID
"""

from __future__ import annotations

from pathlib import Path

from latentsync_ray.cli import run_cli
from latentsync_ray.config.schema import is_path
from latentsync_ray.usage import CommandParser


def _located(network: str) -> str:
    """Makes the name of a path hold wherever a process runs; leaves hub ids alone."""
    return str(Path(network).expanduser().absolute()) if is_path(network, Path.cwd()) else network


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and prepares. Returns the exit status."""
    args = parser().parse_args(arguments)

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


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "preprocess",
        "VIDEOS OUT --vae V --audio-encoder A [options]",
        "Turns videos with sound into a prepared set to train on. Stopped, the same\ncommand does what is missing.",
        ("VIDEOS data/real --raw \\\n    --vae stabilityai/sd-vae-ft-mse --audio-encoder openai/whisper-tiny",),
    )
    made.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of videos with sound, and its subfolders")
    made.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    made.add_argument("--vae", required=True, metavar="V", help="folder or hub id of a diffusers autoencoder")
    made.add_argument("--audio-encoder", required=True, metavar="A", help="folder or hub id of a Whisper model")
    made.add_argument("--raw", action="store_true", help="footage: find, align and cut out faces")
    made.add_argument(
        "--resolution", type=int, default=256, metavar="N", help="height and width in pixels (%(default)s)"
    )
    made.add_argument(
        "--validation", nargs="+", default=[], metavar="P", help="held-out clips: 'speaker4/*' (every fifth)"
    )
    made.add_argument("--mask", type=Path, metavar="FILE", help="black where to generate (an ellipse)")
    made.add_argument("--face-models", type=Path, metavar="DIR", help="MediaPipe's mediapipe/modules (its wheel's)")
    return made


if __name__ == "__main__":
    run_cli(main)
