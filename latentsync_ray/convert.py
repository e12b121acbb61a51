"""Makes the folders for `components.syncnet` and `components.lpips` from the published files.

latentsync-ray convert syncnet stable_syncnet.pt models/syncnet       # of huggingface.co/ByteDance/LatentSync-1.6
latentsync-ray convert lpips vgg16-397923af.pth vgg.pth models/lpips  # of torchvision, and of lpips (weights/v0.1)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from latentsync_ray.cli import run_cli
from latentsync_ray.core.atomic import new_folder
from latentsync_ray.latentsync.syncnet.config import load_syncnet
from latentsync_ray.shipped import shipped_files
from latentsync_ray.usage import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and converts. Returns the exit status."""
    options = parser().parse_args(arguments)
    if options.network == "syncnet":
        convert_syncnet(options.file, options.folder, options.config)
    else:
        convert_lpips(options.vgg16_file, options.linear_file, options.folder)
    print(f"wrote the folder for components.{options.network}: {options.folder.absolute()}")
    return 0


def convert_syncnet(file: Path, folder: Path, config_file: Path) -> None:
    """Writes a SyncNet's folder from LatentSync's checkpoint.

    Args:
        file: holds its state dict.
        folder: is made, all at once.
        config_file: a training of SyncNet, such as configs/256/syncnet.yaml.

    Raises:
        UserError: a file cannot be read, the two do not fit, or the folder cannot be made.
    """
    config = load_syncnet(config_file, [])
    with new_folder(folder) as made:
        from latentsync_ray.latentsync.models.tensors import check_shapes, read_published  # torch takes seconds
        from latentsync_ray.latentsync.syncnet.training import build_syncnet

        syncnet, weights = build_syncnet(config), read_published(file)
        check_shapes(file, weights, syncnet.state_dict(), f"name the file of {config_file}, or give its --config")
        syncnet.load_state_dict(weights)
        syncnet.save_pretrained(made)


def convert_lpips(vgg16_file: Path, linear_file: Path, folder: Path) -> None:
    """Writes the folder of LPIPS from the files of the VGG16 and of the linear weights.

    Raises:
        UserError: a file cannot be read or does not fit, or the folder cannot be made.
    """
    with new_folder(folder) as made:
        from latentsync_ray.latentsync.losses import LPIPS  # torch takes seconds

        LPIPS.from_vgg16(vgg16_file, linear_file).save_pretrained(made)


def parser() -> CommandParser:
    """The command's arguments."""
    made = CommandParser(
        "convert",
        "NETWORK FILE ... FOLDER",
        "Makes the folders for components.syncnet and components.lpips from the files of\n"
        "huggingface.co/ByteDance/LatentSync-1.6, and of torchvision and lpips.",
        ("syncnet stable_syncnet.pt models/syncnet", "lpips vgg16-397923af.pth vgg.pth models/lpips"),
    )
    networks = made.add_subparsers(
        dest="network", required=True, metavar="NETWORK ...", parser_class=argparse.ArgumentParser
    )
    syncnet = networks.add_parser("syncnet", help="LatentSync's SyncNet: FILE FOLDER [--config FILE]")
    syncnet.add_argument(
        "file", type=Path, help="stable_syncnet.pt, or what LatentSync's train_syncnet.py has written"
    )
    syncnet.add_argument("folder", type=Path, help="a new folder")
    syncnet.add_argument(
        "--config",
        type=Path,
        default=shipped_files() / "configs" / "256" / "syncnet.yaml",
        help="its `model` and `resolution` are the file's (the shipped configs/256/syncnet.yaml)",
    )
    lpips = networks.add_parser("lpips", help="LPIPS on VGG16: VGG16_FILE LINEAR_FILE FOLDER")
    lpips.add_argument("vgg16_file", type=Path, help="torchvision's vgg16-397923af.pth")
    lpips.add_argument("linear_file", type=Path, help="weights/v0.1/vgg.pth of the lpips package")
    lpips.add_argument("folder", type=Path, help="a new folder")
    return made


if __name__ == "__main__":
    run_cli(main)
