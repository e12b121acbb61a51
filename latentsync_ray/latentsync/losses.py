"""The terms of the training loss: reconstruction, SyncNet, LPIPS and TREPA.

The terms are LatentSync's (https://arxiv.org/abs/2412.09262; `scripts/train_unet.py` of
https://github.com/bytedance/LatentSync). All take their inputs in any float type and compute what is delicate
in float32, under autocast too. Pixels are (B, 3, F, H, W) in [-1, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import VideoMAEModel

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.models.pretrained import load_pretrained
from latentsync_ray.latentsync.models.tensors import read_published
from latentsync_ray.latentsync.syncnet.model import StableSyncNet


def recon_loss(pred_noise: Tensor, noise: Tensor) -> Tensor:
    """Return the predicted noise's mean squared error, a scalar (https://arxiv.org/abs/2006.11239, eq. 14)."""
    return F.mse_loss(pred_noise.float(), noise.float())


# --- SyncNet ------------------------------------------------------------------


def cosine_loss(vision_embeds: Tensor, audio_embeds: Tensor, y: Tensor) -> Tensor:
    """Take the cosine similarity as the probability that picture and sound belong together.

    Binary cross-entropy on the similarity, after Wav2Lip (https://arxiv.org/abs/2008.10010, section 3).

    Args:
        vision_embeds: (B, D).
        audio_embeds: (B, D).
        y: (B,) 1 where they belong together, else 0.

    Returns:
        (B,) float32 loss of each pair.
    """
    # Autocast forbids binary_cross_entropy because its input might be half precision; here it is not.
    with torch.autocast(vision_embeds.device.type, enabled=False):
        similarity = F.cosine_similarity(vision_embeds.float(), audio_embeds.float())
        # Rounding may carry the similarity of equal vectors past 1, where the logarithm is undefined. Of a similarity
        # that is NaN the loss is NaN: torch would raise an error, on a GPU one that ends the process.
        probability = similarity.nan_to_num(nan=0.0).clamp(0, 1)
        loss = F.binary_cross_entropy(probability, y.float(), reduction="none")
        return torch.where(similarity.isnan(), similarity, loss)


def sync_loss(
    syncnet: StableSyncNet,
    pixels: Tensor,
    mel: Tensor,
    lower_half: bool = True,
) -> tuple[Tensor, Tensor]:
    """Ask a frozen SyncNet whether the mouths in `pixels` say what is heard in `mel`.

    Args:
        syncnet: made for the frame count of `pixels`; they are resized (bicubic) to its `resolution`, if it has one.
        pixels: (B, 3, F, H, W) in [-1, 1].
        mel: (B, 1, 80, T) mel spectrogram of the same frames.
        lower_half: show the network only the lower half of each frame, as it was trained.

    Returns:
        The loss (scalar) and the confidence (scalar without gradient), the mean cosine similarity in [0, 1].
    """
    vision_embeds, audio_embeds = syncnet(visual_input(syncnet, pixels, lower_half), mel)
    y = torch.ones(len(pixels), device=pixels.device)
    confidence = F.cosine_similarity(vision_embeds.detach().float(), audio_embeds.detach().float()).mean()
    return cosine_loss(vision_embeds, audio_embeds, y).mean(), confidence


def visual_input(syncnet: StableSyncNet, pixels: Tensor, lower_half: bool = True) -> Tensor:
    """Turn videos (B, 3, F, H, W) into what SyncNet looks at, (B, 3 F, h, w): resized, and the lower half of it."""
    frames = pixels.transpose(1, 2)  # (B, F, 3, H, W)
    resolution = syncnet.config.resolution
    if resolution is not None:
        frames = _resize(frames, (resolution, resolution))
    if lower_half:
        frames = frames[..., frames.shape[-2] // 2 :, :]
    return frames.flatten(1, 2)


def _resize(frames: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, F, 3, H, W) to (height, width) `size`, bicubic, in float32; as is where it fits already.

    As two matrix products, because the backward pass of torch's own bicubic `interpolate` is not deterministic
    on GPUs (`torch.use_deterministic_algorithms` lists it).
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    with torch.autocast(frames.device.type, enabled=False):
        rows, columns = (
            _bicubic_weights(old_size, new_size, frames.device)
            for old_size, new_size in zip(frames.shape[-2:], size, strict=True)
        )
        return rows @ frames.float() @ columns.T


def _bicubic_weights(old_size: int, new_size: int, device: torch.device) -> Tensor:
    """Return (new_size, old_size): what each old pixel contributes to each new one along one axis."""
    unit_vectors = torch.eye(old_size, device=device)[None, None]
    return F.interpolate(unit_vectors, size=(new_size, old_size), mode="bicubic")[0, 0]


# --- LPIPS --------------------------------------------------------------------

CONVS_PER_STAGE = (2, 2, 3, 3, 3)  # of VGG16 (https://arxiv.org/abs/1409.1556, table 1, configuration D)


class LPIPS(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Perceptual distance of two images in the eyes of VGG16 (https://arxiv.org/abs/1801.03924, eq. 1).

    Version 0.1 of the `lpips` package, on torchvision's VGG16 or a smaller network of the same build. The
    parameters are frozen and named as there: `features.0.weight` (torchvision), `lin0.model.1.weight` (lpips).
    `from_pretrained` and `save_pretrained` are those of diffusers (config.json and safetensors in a folder).

    Args:
        channels: width of each stage, five for VGG16. Height and width are halved between two stages.
    """

    shift: Tensor
    scale: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: Sequence[int] = (64, 128, 256, 512, 512)) -> None:
        super().__init__()
        if not 1 <= len(channels) <= len(CONVS_PER_STAGE):
            raise ValueError(f"LPIPS: channels must be 1 to {len(CONVS_PER_STAGE)} widths, not {list(channels)}")

        layers: list[nn.Module] = []
        self.tap_layers = []  # the last ReLU of each stage
        in_channels = 3
        for width, num_convs in zip(channels, CONVS_PER_STAGE, strict=False):
            for _ in range(num_convs):
                layers += [nn.Conv2d(in_channels, width, kernel_size=3, padding=1), nn.ReLU()]
                in_channels = width
            self.tap_layers.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(kernel_size=2))
        self.features = nn.Sequential(*layers[:-1])
        for tap, width in enumerate(channels):
            self.add_module(f"lin{tap}", _LinearWeights(width))

        # From [-1, 1] to ImageNet's mean and standard deviation, which torchvision's VGG16 expects.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_vgg16(cls, vgg16_file: Path | str, linear_file: Path | str) -> Self:
        """Build the network from the two published files, safetensors or torch's own format.

        Args:
            vgg16_file: torchvision's VGG16 (`vgg16-397923af.pth`); its classifier is left out.
            linear_file: the linear weights of the `lpips` package (`lpips/weights/v0.1/vgg.pth`).

        Raises:
            UserError: a file cannot be read, or a tensor is missing or has another shape.
        """
        linear = {key: value for key, value in read_published(Path(linear_file)).items() if key.startswith("lin")}
        vgg16 = {key: value for key, value in read_published(Path(vgg16_file)).items() if key.startswith("features.")}
        channels: list[int] = []
        while (weight := linear.get(f"lin{len(channels)}.model.1.weight")) is not None:
            channels.append(weight.shape[1])

        if not 1 <= len(channels) <= len(CONVS_PER_STAGE):
            raise UserError(
                f"{linear_file}: must hold lin0.model.1.weight to lin4.model.1.weight, but holds {len(channels)} "
                "such tensors in a row; take weights/v0.1/vgg.pth of the lpips package"
            )
        lpips = cls(channels=channels)
        given = {**vgg16, **linear}
        for key, value in lpips.state_dict().items():
            if key not in given or given[key].shape != value.shape:
                file = linear_file if key.startswith("lin") else vgg16_file
                found = f"has shape {tuple(given[key].shape)}" if key in given else "is missing"
                raise UserError(
                    f"{file}: {key} must have shape {tuple(value.shape)}, but {found}; take torchvision's "
                    "vgg16-397923af.pth and the lpips package's weights/v0.1/vgg.pth"
                )
        lpips.load_state_dict({key: given[key] for key in lpips.state_dict()})
        return cast(Self, lpips)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare images pairwise.

        Args:
            pred: (N, 3, H, W) in [-1, 1].
            target: the same.

        Returns:
            (N,) float32 distances, 0 for equal images.
        """
        distance = torch.zeros(len(pred), device=pred.device)
        for tap, (pred_features, target_features) in enumerate(
            zip(self._unit_features(pred), self._unit_features(target), strict=True)
        ):
            weight = self.get_submodule(f"lin{tap}.model.1").weight.float().flatten()
            squared = (pred_features - target_features).square().mean(dim=(2, 3))  # (N, C)
            distance = distance + (squared * weight).sum(dim=1)
        return distance

    def _unit_features(self, images: Tensor) -> list[Tensor]:
        """Return float32 (N, C, h, w) of each tap, unit vectors over the channels."""
        hidden_states = (images - self.shift) / self.scale
        unit_features = []
        for index, layer in enumerate(self.features):
            hidden_states = layer(hidden_states)
            if index in self.tap_layers:
                features = hidden_states.float()
                # vector_norm has gradient 0 at a dead position, where the square root of a sum has none.
                norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
                unit_features.append(features / (norm + 1e-10))
        return unit_features


class _LinearWeights(nn.Module):
    """Holds one tap's channel weights under lpips' name, `model.1.weight` (`model.0` is its dropout)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), _ChannelWeights(channels))


class _ChannelWeights(nn.Module):
    """A weight for each channel, in the shape of lpips' convolution; it is no layer, since it is used in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # 1 is the plain distance; a weight below 0 would reward differences.
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))


# --- TREPA --------------------------------------------------------------------


class TREPALoss(nn.Module):
    """Temporal representation alignment: the distance of two videos in the eyes of a video model.

    LatentSync (`latentsync/trepa/loss.py`) takes a VideoMAE-v2; here it is any VideoMAE of transformers, and a
    video's feature vector is the mean over all tokens of `last_hidden_state`, as VideoMAE-v2 pools them. The
    model is frozen and stays in eval mode; gradients reach the pixels.

    Args:
        model: its config says how many frames of which size it takes.
    """

    def __init__(self, model: VideoMAEModel) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        # transformers keeps these as a plain tensor on the CPU, from where every call would copy them to a GPU.
        embeddings = model.embeddings
        positions = embeddings.__dict__.pop("position_embeddings")
        embeddings.register_buffer("position_embeddings", positions, persistent=False)
        self.train(False)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """Load the video model from a folder or, by its id, from the Hugging Face hub."""
        return cls(load_pretrained(VideoMAEModel, name_or_path))

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, also when a module that holds this one is set to train."""
        return super().train(False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare videos pairwise.

        Args:
            pred: (B, 3, F, H, W) in [-1, 1]; F is the model's own number of frames, H and W are free.
            target: the same.

        Returns:
            Scalar float32 loss.

        Raises:
            ValueError: F is not the model's number of frames.
        """
        return trepa_feature_loss(self.video_features(pred), self.video_features(target))

    def video_features(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, F, H, W) in [-1, 1] to one float32 vector each, (B, hidden_size)."""
        num_frames = self.model.config.num_frames
        if pixels.shape[2] != num_frames:
            raise ValueError(
                f"TREPA: the video model takes {num_frames} frames, but the pixels have {pixels.shape[2]}; "
                "train on as many frames or take another video model"
            )
        video = trepa_model_input(pixels, self.model.config.image_size)
        tokens = self.model(video.transpose(1, 2).to(self.model.dtype)).last_hidden_state  # takes (B, F, 3, H, W)
        return tokens.float().mean(dim=1)  # type: ignore[no-any-return]


def trepa_model_input(pixels: Tensor, image_size: int | Sequence[int]) -> Tensor:
    """Bring pixels (B, 3, F, H, W) in [-1, 1] to the video model's image size and its value range [0, 1].

    Resized frame by frame (bicubic); what overshoots the range is cut off. As in LatentSync there is no
    ImageNet normalisation.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    video = _resize(pixels.transpose(1, 2), size).transpose(1, 2)
    return (video.float() / 2 + 0.5).clamp(0, 1)


def trepa_feature_loss(feat_fake: Tensor, feat_real: Tensor) -> Tensor:
    """Return the mean squared error of feature vectors (B, D), each scaled to length 1; a scalar."""
    return F.mse_loss(F.normalize(feat_fake.float(), dim=1), F.normalize(feat_real.float(), dim=1))
