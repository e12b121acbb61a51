"""Building blocks of the UNet: residual layers, spatial and temporal attention, and the down, mid and up blocks.

Everywhere below, hidden states are (B * F, C, H, W): the frames of a video are folded into the batch from the
first convolution to the last. Only the group norms of the residual layers and the motion modules see that
frames belong together.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
# (torch leaves the results of modules and some methods of tensors untyped)

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward as DiffusersFeedForward
from torch import Tensor, nn

from latentsync_ray.latentsync.models.recompute import geglu_linear, group_norm_silu_conv

CPU_HEAD_DIM = 16
"""Narrower heads are filled up with zeros on a CPU, whose kernel takes nearly twice as long for 8 as for 16."""

# The motion modules' group norm keeps this number of groups whatever `norm_num_groups` says.
MOTION_NUM_GROUPS = 32


class FeedForward(DiffusersFeedForward):  # type: ignore[misc]
    """diffusers' feed-forward layer with GEGLU, whose product is not kept for the backward pass."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (N, L, C) to the same shape."""
        gate, _, project_out = self.net
        return geglu_linear(gate.proj(hidden_states), project_out)


class ResnetBlock(nn.Module):
    """Two convolutions with a residual connection; the timestep enters between them."""

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, num_groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """Map (B * F, C_in, H, W) to (B * F, C_out, H, W); `temb` is the activated embedding (B, D)."""
        batch_size = len(temb)
        num_frames = len(hidden_states) // batch_size
        residual = self.conv_shortcut(hidden_states)
        hidden_states = group_norm_silu_conv(hidden_states, self.norm1, self.conv1, batch_size)
        shift = self.time_emb_proj(temb).repeat_interleave(num_frames, dim=0)
        hidden_states = hidden_states + shift[:, :, None, None]
        return residual + group_norm_silu_conv(hidden_states, self.norm2, self.conv2, batch_size)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2); only the output projection has a bias."""

    def __init__(self, channels: int, num_heads: int, context_channels: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, hidden_states: Tensor, context: Tensor | None = None) -> Tensor:
        """Map (N, L, C) to the same shape, attending to `context` (N, S, D), by default to itself."""
        # Projections of the same input are one product.
        weights = self.to_q.weight, self.to_k.weight, self.to_v.weight
        if context is None:
            projections = F.linear(hidden_states, torch.cat(weights)).chunk(3, dim=-1)
        else:
            projections = (self.to_q(hidden_states), *F.linear(context, torch.cat(weights[1:])).chunk(2, dim=-1))
        query, key, value = (p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in projections)
        head_dim = query.shape[-1]
        if query.device.type == "cpu" and head_dim < CPU_HEAD_DIM:
            query, key, value = (F.pad(heads, (0, CPU_HEAD_DIM - head_dim)) for heads in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=head_dim**-0.5)[..., :head_dim]
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each after a layer norm and within a residual."""

    def __init__(self, channels: int, num_heads: int, cross_attention_dim: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, num_heads)
        self.attn2 = None
        if cross_attention_dim is not None:
            self.norm2 = nn.LayerNorm(channels)
            self.attn2 = Attention(channels, num_heads, cross_attention_dim)
        self.ff = FeedForward(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Map (N, L, C) to the same shape; `encoder_hidden_states` are (N, S, D)."""
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        if self.attn2 is not None:
            hidden_states = hidden_states + self.attn2(self.norm2(hidden_states), encoder_hidden_states)
        return hidden_states + self.ff(self.norm3(hidden_states))


class SpatialTransformer(nn.Module):
    """Attention among the positions of one frame, then to that frame's audio tokens."""

    def __init__(self, channels: int, num_heads: int, num_groups: int, cross_attention_dim: int | None):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, num_heads, cross_attention_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Map (B * F, C, H, W) to the same shape; `encoder_hidden_states` are (B * F, N, D)."""
        tokens = self.norm(hidden_states).contiguous(memory_format=torch.channels_last)
        tokens = self.proj_in(tokens).flatten(2).transpose(1, 2)  # (B * F, H * W, C), without another copy
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states)
        return hidden_states + self.proj_out(tokens.transpose(1, 2).view_as(hidden_states))


class PositionalEncoding(nn.Module):
    """Adds the sinusoidal encoding of Vaswani et al. (2017), section 3.5, to (N, F, C)."""

    pe: Tensor

    def __init__(self, channels: int, max_len: int):
        super().__init__()
        # In float64, since float32 exp and sin differ between CPU instruction sets.
        position = torch.arange(max_len, dtype=torch.float64)[:, None]
        angle = position * 10000 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        pe = torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1)[None]
        self.register_buffer("pe", pe.float())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Add the encoding of frames 0, 1, ... along the second axis."""
        num_frames, max_len = hidden_states.shape[1], self.pe.shape[1]
        if num_frames > max_len:
            raise ValueError(f"{num_frames} frames exceed temporal_position_encoding_max_len: {max_len}")
        return hidden_states + self.pe[:, :num_frames]


class TemporalAttention(Attention):
    """Self-attention among frames that know their position."""

    def __init__(self, channels: int, num_heads: int, max_len: int | None):
        super().__init__(channels, num_heads)
        self.pos_encoder = nn.Identity() if max_len is None else PositionalEncoding(channels, max_len)

    def forward(self, hidden_states: Tensor, context: Tensor | None = None) -> Tensor:
        """Map (N, F, C) to the same shape."""
        return super().forward(self.pos_encoder(hidden_states), context)


class TemporalTransformerBlock(nn.Module):
    """Attention layers and a feed-forward layer, each with a layer norm before it and a residual around it."""

    def __init__(self, channels: int, num_heads: int, num_attention_layers: int, max_len: int | None):
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(channels, num_heads, max_len) for _ in range(num_attention_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(num_attention_layers))
        self.ff = FeedForward(channels)
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (N, F, C) to the same shape."""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            hidden_states = hidden_states + attention(norm(hidden_states))
        return hidden_states + self.ff(self.ff_norm(hidden_states))


class TemporalTransformer(nn.Module):
    """Temporal transformer blocks on the frames of each position."""

    def __init__(self, channels: int, inner_channels: int, blocks: Sequence[TemporalTransformerBlock]):
        super().__init__()
        self.norm = nn.GroupNorm(MOTION_NUM_GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner_channels)
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(inner_channels, channels)

    def forward(self, hidden_states: Tensor, batch_size: int) -> Tensor:
        """Map (B * F, C, H, W) to the same shape."""
        videos = hidden_states.unflatten(0, (batch_size, -1))  # (B, F, C, H, W)
        tokens = self.norm(hidden_states).view_as(videos).permute(0, 3, 4, 1, 2)  # (B, H, W, F, C)
        tokens = self.proj_in(tokens.flatten(0, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens)
        update = self.proj_out(tokens).view(*videos.shape[:1], *videos.shape[3:], *videos.shape[1:3])
        return (videos + update.permute(0, 3, 4, 1, 2)).flatten(0, 1)


class MotionModule(nn.Module):
    """A residual temporal transformer; with `zero_initialize` it starts as the identity.

    Takes LatentSync's `motion_module_kwargs`.

    Raises:
        ValueError: an attention block other than `Temporal_Self` is asked for.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_attention_heads: int = 8,
        num_transformer_block: int = 1,
        attention_block_types: Sequence[str] = ("Temporal_Self", "Temporal_Self"),
        temporal_position_encoding: bool = True,
        temporal_position_encoding_max_len: int = 24,
        temporal_attention_dim_div: int = 1,
        zero_initialize: bool = True,
    ):
        super().__init__()
        for block_type in attention_block_types:
            if block_type != "Temporal_Self":
                raise ValueError(f"attention_block_types: only 'Temporal_Self' is supported, got {block_type!r}")
        max_len = temporal_position_encoding_max_len if temporal_position_encoding else None
        inner_channels = channels // temporal_attention_dim_div
        blocks = [
            TemporalTransformerBlock(inner_channels, num_attention_heads, len(attention_block_types), max_len)
            for _ in range(num_transformer_block)
        ]
        self.temporal_transformer = TemporalTransformer(channels, inner_channels, blocks)
        if zero_initialize:
            nn.init.zeros_(self.temporal_transformer.proj_out.weight)
            nn.init.zeros_(self.temporal_transformer.proj_out.bias)

    def forward(self, hidden_states: Tensor, batch_size: int) -> Tensor:
        """Map (B * F, C, H, W) to the same shape."""
        return self.temporal_transformer(hidden_states, batch_size)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B * F, C, H, W) to (B * F, C, H / 2, W / 2), sizes rounded up."""
        return self.conv(hidden_states)


class Upsample(nn.Module):
    """Repeats rows and columns, then convolves."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor, size: torch.Size) -> Tensor:
        """Map (B * F, C, H, W) to (B * F, C, *size)."""
        return self.conv(F.interpolate(hidden_states, size=size))


class Block(nn.Module):
    """Layers at one resolution: residual layers, spatial attention layers and motion modules.

    Args:
        in_channels: Of each residual layer in turn.
        out_channels: Of every layer.
        num_attentions: Number of spatial attention layers; 0 for none.
        num_motion_modules: Likewise.
        temb_channels: Size of the timestep embedding.
        num_groups: Of the group norms, the motion modules' excepted.
        eps: Of the residual layers' group norms.
        num_heads: Of spatial attention.
        cross_attention_dim: Size of an audio token; None for no attention to audio.
        motion_module_kwargs: `MotionModule`'s.
    """

    # diffusers' `enable_gradient_checkpointing` sets both.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        num_attentions: int,
        num_motion_modules: int,
        temb_channels: int,
        num_groups: int,
        eps: float,
        num_heads: int,
        cross_attention_dim: int | None,
        motion_module_kwargs: Mapping[str, Any],
    ):
        super().__init__()
        self.attentions = nn.ModuleList(
            SpatialTransformer(out_channels, num_heads, num_groups, cross_attention_dim)
            for _ in range(num_attentions)
        )
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, out_channels, temb_channels, num_groups, eps) for channels in in_channels
        )
        self.motion_modules = nn.ModuleList(
            MotionModule(out_channels, **motion_module_kwargs) for _ in range(num_motion_modules)
        )

    def run(self, layer: nn.Module, *args: Tensor | int) -> Tensor:
        """Call a layer, keeping no more than its inputs for the backward pass under gradient checkpointing."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer, *args)
        return layer(*args)

    def attend(self, i: int, hidden_states: Tensor, encoder_hidden_states: Tensor, batch_size: int) -> Tensor:
        """Call the i-th attention layer and motion module, where the block has them."""
        if self.attentions:
            hidden_states = self.run(self.attentions[i], hidden_states, encoder_hidden_states)
        if self.motion_modules:
            hidden_states = self.run(self.motion_modules[i], hidden_states, batch_size)
        return hidden_states


class DownBlock(Block):
    """Layers, then a halved resolution except in the last block."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, is_last: bool, **block_kwargs: Any):
        super().__init__(in_channels, out_channels, **block_kwargs)
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample(out_channels)])

    def forward(self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor) -> list[Tensor]:
        """Return the hidden states after every layer, the last ones for the next block, all for the up blocks."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            hidden_states = self.run(resnet, hidden_states, temb)
            hidden_states = self.attend(i, hidden_states, encoder_hidden_states, len(temb))
            outputs.append(hidden_states)
        for downsampler in self.downsamplers:
            outputs.append(downsampler(hidden_states))
        return outputs


class MidBlock(Block):
    """A residual layer, attention, and a second residual layer at the lowest resolution."""

    def forward(self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Map (B * F, C, H, W) to the same shape."""
        hidden_states = self.run(self.resnets[0], hidden_states, temb)
        hidden_states = self.attend(0, hidden_states, encoder_hidden_states, len(temb))
        return self.run(self.resnets[1], hidden_states, temb)


class UpBlock(Block):
    """Layers, each fed with the output of its counterpart on the way down, then twice the resolution."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, is_last: bool, **block_kwargs: Any):
        super().__init__(in_channels, out_channels, **block_kwargs)
        self.upsamplers = nn.ModuleList([] if is_last else [Upsample(out_channels)])

    def forward(
        self, hidden_states: Tensor, skips: list[Tensor], temb: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        """Take as many of the last `skips` off the list as there are layers."""
        for i, resnet in enumerate(self.resnets):
            hidden_states = torch.cat([hidden_states, skips.pop()], dim=1)
            hidden_states = self.run(resnet, hidden_states, temb)
            hidden_states = self.attend(i, hidden_states, encoder_hidden_states, len(temb))
        for upsampler in self.upsamplers:
            hidden_states = upsampler(hidden_states, size=skips[-1].shape[2:])
        return hidden_states
