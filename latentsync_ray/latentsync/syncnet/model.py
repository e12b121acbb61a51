"""StableSyncNet: how well a mouth and a sound go together, as two unit vectors.

The network of LatentSync (https://github.com/bytedance/LatentSync, `latentsync/models/stable_syncnet.py`;
paper https://arxiv.org/abs/2412.09262), written anew: the same parameters by name and shape, so
that its published weights load, and the same function.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

NUM_GROUPS = 32  # of every group norm
GROUP_NORM_EPS = 1e-6
NUM_HEADS = 8  # of every attention block, whatever its width


class StableSyncNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Two convolutional encoders whose embeddings point the same way when picture and sound agree.

    Args:
        audio_encoder: of the mel spectrogram: `in_channels`, `block_out_channels`, `downsample_factors` (one
            number, or [height, width], per block), `attn_blocks` (1 where a self-attention block follows the
            convolution block) and `dropout`.
        visual_encoder: the same for the frames; `in_channels` is 3 x the number of frames.
        resolution: height and width of the whole frames that it was trained on, to which others are resized; None
            takes frames as they are.

    The last norm has 32 groups. Where the encoders end in one position, as the official ones do, a group holds
    last width / 32 numbers (officially 64); with one or two of them little more than signs would be left.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, audio_encoder: dict[str, Any], visual_encoder: dict[str, Any], resolution: int | None = None
    ) -> None:
        super().__init__()
        self.audio_encoder = DownEncoder(audio_encoder)
        self.visual_encoder = DownEncoder(visual_encoder)

    def __getattr__(self, name: str) -> Any:
        # diffusers would answer with the config's entry, which bears the submodule's name.
        return nn.Module.__getattr__(self, name)

    def forward(self, image_sequences: Tensor, audio_sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Embed picture and sound.

        Args:
            image_sequences: (B, 3 F, H, W) in [-1, 1], the frames one after another on the channel axis
                (R, G, B of frame 0 first); H is half of W where only the lower halves of the faces are given.
            audio_sequences: (B, 1, 80, T) mel spectrogram of the same stretch of time.

        Returns:
            `vision_embeds` and `audio_embeds`, both (B, D), unit vectors.

        Raises:
            ValueError: the two embeddings differ in length, that is, the encoders' last widths and
                downsampling do not fit H, W and T.
        """
        vision_embeds = self.visual_encoder(image_sequences).flatten(1)
        audio_embeds = self.audio_encoder(audio_sequences).flatten(1)
        if vision_embeds.shape != audio_embeds.shape:
            raise ValueError(
                "StableSyncNet: both embeddings must have the same length, but frames "
                f"{tuple(image_sequences.shape)} give {vision_embeds.shape[1]} numbers and mel "
                f"{tuple(audio_sequences.shape)} gives {audio_embeds.shape[1]}"
            )
        return F.normalize(vision_embeds, dim=1), F.normalize(audio_embeds, dim=1)


class DownEncoder(nn.Module):
    """Convolution blocks that shrink their input, some followed by self-attention."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths = config["block_out_channels"]
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], kernel_size=3, padding=1)

        self.down_blocks = nn.ModuleList()
        in_channels = widths[0]
        for width, factor, attention in zip(widths, config["downsample_factors"], config["attn_blocks"], strict=True):
            self.down_blocks.append(ResnetBlock(in_channels, width, factor, config["dropout"]))
            if attention:
                self.down_blocks.append(AttentionBlock(width, config["dropout"]))
            in_channels = width

        self.norm_out = nn.GroupNorm(NUM_GROUPS, widths[-1], eps=GROUP_NORM_EPS)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, last width, h, w), no value below 0."""
        hidden_states = self.conv_in(hidden_states)
        for block in self.down_blocks:
            hidden_states = block(hidden_states)
        if hidden_states[0].numel() == NUM_GROUPS:
            raise ValueError(
                f"StableSyncNet: {NUM_GROUPS} channels at one position leave one number to each of the last norm's "
                f"groups, so every output would be the same; take a last width of {8 * NUM_GROUPS} or so"
            )
        return F.relu(self.norm_out(hidden_states))


class ResnetBlock(nn.Module):
    """Pre-activation residual block, then a strided convolution.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        downsample_factor: stride, one number or [height, width]; at 1 there is no strided convolution.
        dropout: rate, before the second convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, downsample_factor: int | Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NUM_GROUPS, in_channels, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(NUM_GROUPS, out_channels, eps=GROUP_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

        height_factor, width_factor = (
            (downsample_factor, downsample_factor) if isinstance(downsample_factor, int) else downsample_factor
        )
        self.downsample_conv = None
        if (height_factor, width_factor) != (1, 1):
            self.downsample_conv = nn.Conv2d(
                out_channels, out_channels, kernel_size=3, stride=(height_factor, width_factor)
            )
        # (left, right, top, bottom): an axis that shrinks is padded at its end only, another at both.
        self.pad = (int(width_factor == 1), 1, int(height_factor == 1), 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, h, w): h and w are H and W over the two factors."""
        residual = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states)))
        hidden_states = self.conv2(self.dropout(F.silu(self.norm2(hidden_states))))
        hidden_states = hidden_states + residual
        if self.downsample_conv is not None:
            hidden_states = self.downsample_conv(F.pad(hidden_states, self.pad))
        return hidden_states


class AttentionBlock(nn.Module):
    """Self-attention over all positions with eight heads, then a gated feed-forward layer."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NUM_GROUPS, channels, eps=GROUP_NORM_EPS)
        self.conv_in = nn.Conv2d(channels, channels, kernel_size=1)
        self.norm2 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads=NUM_HEADS, dim_head=channels // NUM_HEADS, dropout=dropout, bias=True)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, dropout=dropout, activation_fn="geglu")
        self.conv_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        residual = hidden_states
        hidden_states = self.conv_in(self.norm1(hidden_states))
        tokens = hidden_states.flatten(2).transpose(1, 2)  # (B, H W, C)
        tokens = tokens + self.attn(self.norm2(tokens))
        tokens = tokens + self.ff(self.norm3(tokens))
        hidden_states = tokens.transpose(1, 2).reshape(hidden_states.shape)
        hidden_states = self.conv_out(hidden_states)
        return hidden_states + residual
