"""The denoising network: LatentSync's 3D UNet, name by name and number by number.

The architecture is Stable Diffusion's UNet run on every frame (https://github.com/bytedance/LatentSync,
latentsync/models/unet.py), with AnimateDiff's motion modules between its layers in the second stage.
Checkpoints of the original load strictly.
"""

# mypy: disable-error-code="no-untyped-call"
# (torch leaves some methods of tensors untyped)

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from torch import Tensor, nn

from latentsync_ray.latentsync.models.recompute import group_norm_silu_conv
from latentsync_ray.latentsync.models.unet_blocks import DownBlock, MidBlock, UpBlock

# Whether a block of this type has spatial attention.
DOWN_BLOCK_TYPES = {"CrossAttnDownBlock3D": True, "DownBlock3D": False}
UP_BLOCK_TYPES = {"CrossAttnUpBlock3D": True, "UpBlock3D": False}


class UNet3DConditionModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the noise in the latents of a video from the timestep and the audio of every frame.

    The arguments are those of the `model` section in LatentSync's configs/unet/*.yaml, the defaults its first stage.
    Options that LatentSync itself never sets otherwise have a single value here.

    Args:
        act_fn: "silu".
        add_audio_layer: Whether attention layers attend to the audio too.
        attention_head_dim: Number of attention heads (the name is historical).
        block_out_channels: Channels of each down block; the up blocks mirror them.
        center_input_sample: Whether to map inputs from [0, 1] to [-1, 1] first.
        cross_attention_dim: Size of an audio token.
        down_block_types: "CrossAttnDownBlock3D" or "DownBlock3D" for each block.
        mid_block_type: "UNetMidBlock3DCrossAttn".
        up_block_types: "CrossAttnUpBlock3D" or "UpBlock3D" for each block.
        downsample_padding: 1.
        flip_sin_to_cos: Whether the timestep encoding puts cosines first.
        freq_shift: Of the timestep encoding.
        in_channels: Latents 4, mask 1, masked latents 4, reference latents 4.
        layers_per_block: Layers of a down block; up blocks have one more.
        mid_block_scale_factor: 1.
        norm_eps: Of the residual layers' group norms.
        norm_num_groups: Of all group norms but the motion modules'.
        out_channels: Channels of the prediction.
        sample_size: Latent height and width trained for; not enforced.
        resnet_time_scale_shift: "default".
        use_motion_module: Whether there are motion modules at all.
        motion_module_resolutions: Downsampling factors at which there are motion modules.
        motion_module_mid_block: Whether the mid block has one, too.
        motion_module_decoder_only: Whether the down blocks go without.
        motion_module_type: "Vanilla".
        motion_module_kwargs: See `MotionModule`; None for its defaults.

    Raises:
        ValueError: an option has an unknown value.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        act_fn: str = "silu",
        add_audio_layer: bool = True,
        attention_head_dim: int = 8,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        center_input_sample: bool = False,
        cross_attention_dim: int = 384,
        down_block_types: Sequence[str] = (*["CrossAttnDownBlock3D"] * 3, "DownBlock3D"),
        mid_block_type: str = "UNetMidBlock3DCrossAttn",
        up_block_types: Sequence[str] = ("UpBlock3D", *["CrossAttnUpBlock3D"] * 3),
        downsample_padding: int = 1,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        in_channels: int = 13,
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        norm_eps: float = 1e-5,
        norm_num_groups: int = 32,
        out_channels: int = 4,
        sample_size: int | None = 64,
        resnet_time_scale_shift: str = "default",
        use_motion_module: bool = False,
        motion_module_resolutions: Sequence[int] = (1, 2, 4, 8),
        motion_module_mid_block: bool = False,
        motion_module_decoder_only: bool = False,
        motion_module_type: str = "Vanilla",
        motion_module_kwargs: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        num_levels = len(block_out_channels)
        _expect("act_fn", act_fn, ["silu"])
        _expect("mid_block_type", mid_block_type, ["UNetMidBlock3DCrossAttn"])
        _expect("downsample_padding", downsample_padding, [1])
        _expect("mid_block_scale_factor", mid_block_scale_factor, [1])
        _expect("resnet_time_scale_shift", resnet_time_scale_shift, ["default"])
        _expect("motion_module_type", motion_module_type, ["Vanilla"])
        for name, types, known in [
            ("down_block_types", down_block_types, DOWN_BLOCK_TYPES),
            ("up_block_types", up_block_types, UP_BLOCK_TYPES),
        ]:
            if len(types) != num_levels:
                raise ValueError(f"{name}: expected one for each of block_out_channels ({num_levels}), got {types}")
            for block_type in types:
                _expect(name, block_type, list(known))

        temb_channels = 4 * block_out_channels[0]
        block_kwargs: dict[str, Any] = {
            "temb_channels": temb_channels,
            "num_groups": norm_num_groups,
            "eps": norm_eps,
            "num_heads": attention_head_dim,
            "cross_attention_dim": cross_attention_dim if add_audio_layer else None,
            "motion_module_kwargs": motion_module_kwargs or {},
        }
        has_motion = [use_motion_module and 2**i in motion_module_resolutions for i in range(num_levels)]

        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], temb_channels)

        skip_channels = [block_out_channels[0]]  # of every output that the way up will consume
        self.down_blocks = nn.ModuleList()
        for i, (block_type, channels) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            is_last = i == num_levels - 1
            down_block = DownBlock(
                [skip_channels[-1]] + [channels] * (layers_per_block - 1),
                channels,
                is_last=is_last,
                num_attentions=layers_per_block * DOWN_BLOCK_TYPES[block_type],
                num_motion_modules=layers_per_block * (has_motion[i] and not motion_module_decoder_only),
                **block_kwargs,
            )
            self.down_blocks.append(down_block)
            skip_channels += [channels] * (layers_per_block + (not is_last))

        self.up_blocks = nn.ModuleList()
        previous_channels, num_layers = block_out_channels[-1], layers_per_block + 1
        for i, (block_type, channels) in enumerate(zip(up_block_types, reversed(block_out_channels), strict=True)):
            hidden_channels = [previous_channels] + [channels] * layers_per_block
            up_block = UpBlock(
                [hidden + skip_channels.pop() for hidden in hidden_channels],
                channels,
                is_last=i == num_levels - 1,
                num_attentions=num_layers * UP_BLOCK_TYPES[block_type],
                num_motion_modules=num_layers * has_motion[num_levels - 1 - i],
                **block_kwargs,
            )
            self.up_blocks.append(up_block)
            previous_channels = channels

        self.mid_block = MidBlock(
            [block_out_channels[-1]] * 2,
            block_out_channels[-1],
            num_attentions=1,
            num_motion_modules=int(use_motion_module and motion_module_mid_block),
            **block_kwargs,
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, block_out_channels[0], norm_eps)
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | int, encoder_hidden_states: Tensor) -> UNet3DConditionOutput:
        """Predict the noise.

        Args:
            sample: Noisy latents, masks, masked latents and reference latents, (B, in_channels, F, H, W).
            timestep: (B,) or one for all, 0 to 999.
            encoder_hidden_states: Audio tokens of every frame, (B, F, N, D) or (B * F, N, D).

        Returns:
            `.sample` is the prediction, (B, out_channels, F, H, W).
        """
        batch_size = len(sample)
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        # Not channels last: no faster on the CPU (measured), and torch 2.13 crashes there in the backward pass of a
        # channels-last group norm whose input needs no gradient, as below the first trainable layer.
        hidden_states = sample.transpose(1, 2).flatten(0, 1).contiguous()
        context = encoder_hidden_states.flatten(0, -3)

        timesteps = torch.as_tensor(timestep, device=sample.device).expand(batch_size)
        temb = F.silu(self.time_embedding(self.time_proj(timesteps).to(self.conv_in.weight.dtype)))

        hidden_states = self.conv_in(hidden_states)
        skips = [hidden_states]
        for block in self.down_blocks:
            skips += block(skips[-1], temb, context)
        hidden_states = self.mid_block(skips[-1], temb, context)
        for block in self.up_blocks:
            hidden_states = block(hidden_states, skips, temb, context)
        hidden_states = group_norm_silu_conv(hidden_states, self.conv_norm_out, self.conv_out, batch_size)
        return UNet3DConditionOutput(sample=hidden_states.unflatten(0, (batch_size, -1)).transpose(1, 2))


def _expect(name: str, value: object, known: Sequence[object]) -> None:
    """Raise ValueError unless the option has a known value."""
    if value not in known:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {value!r}")


def select_trainable(model: nn.Module, trainable_modules: Sequence[str] | None) -> list[tuple[str, nn.Parameter]]:
    """Make the parameters trainable whose name contains one of the strings, and freeze all others.

    Args:
        model: Its `requires_grad` flags are set.
        trainable_modules: Such as ["motion_modules.", "attentions."]; None for all parameters.

    Returns:
        The trainable parameters and their names, in the model's order.

    Raises:
        ValueError: a string occurs in no parameter's name.
    """
    parameters = list(model.named_parameters())
    for pattern in trainable_modules or []:
        if not any(pattern in name for name, _ in parameters):
            raise ValueError(f"trainable_modules: no parameter's name contains {pattern!r}")
    for name, parameter in parameters:
        parameter.requires_grad_(trainable_modules is None or any(p in name for p in trainable_modules))
    return [(name, parameter) for name, parameter in parameters if parameter.requires_grad]


def warm_start(unet: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load first-stage weights into a UNet whose motion modules may be new.

    Args:
        unet: If `state_dict` has no motion modules, its own keep their values.
        state_dict: Of a UNet with the same configuration but for the motion modules.

    Raises:
        ValueError: other keys are missing, or some are unexpected or of another shape; the UNet is left as it was.
    """
    own = unet.state_dict()
    are_new = not any("motion_modules." in name for name in state_dict)
    problems = {
        "missing": [n for n in own if n not in state_dict and not (are_new and "motion_modules." in n)],
        "unexpected": [n for n in state_dict if n not in own],
        "of another shape": [n for n in own if n in state_dict and own[n].shape != state_dict[n].shape],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"the weights do not fit the UNet: {found}")
    unet.load_state_dict(state_dict, strict=False)


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
