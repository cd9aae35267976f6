"""The ADM networks of Dhariwal & Nichol, "Diffusion Models Beat GANs" (2021).

`UNet` predicts eps (and the variance fraction v where `learn_sigma`), `Classifier` is
the noise-aware classifier used for guidance.  Both are written from the description of
the architecture; parameter names, shapes and order are those of the published
checkpoints, so `load_state_dict(torch.load(...))` works on them unchanged.

Shapes: B images, C channels, H x W pixels, E = 4 * num_channels embedding features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [B] -> [B, dim], float32: all cosines, then all sines.

    Frequencies are exp(-ln(10000) i / half), i = 0..half-1 (divisor half, not half - 1).
    Fractional timesteps are allowed.
    """
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device).float() / half)
    angles = t.float()[:, None] * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Norm(nn.GroupNorm):
    """Group norm (eps 1e-5) computed in float32 at least, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters set to 0 (the last layer of every residual branch)."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class Downsample(nn.Module):
    """Half the resolution by a stride-2 convolution, key `op`."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a convolution, key `conv`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a network is built from; the names are those of the cards.

    `channel_mult` are widths relative to `num_channels`, one a resolution.  `attention_ds` are
    down-sampling factors (image size divided by the resolution at which attention is applied).
    `num_head_channels`, unless -1, overrides `num_heads`, and `num_heads_upsample`, unless -1, is the
    number on the upward path.  `norm_groups` is 32 in every published checkpoint.
    """

    num_channels: int
    num_res_blocks: int
    channel_mult: Sequence[float]
    attention_ds: Sequence[int]
    in_channels: int = 3
    num_classes: int | None = None
    learn_sigma: bool = True
    dropout: float = 0.0
    num_heads: int = 4
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False
    norm_groups: int = 32


class ResBlock(nn.Module):
    """Residual block conditioned on an embedding; optionally resamples ("up", "down")."""

    def __init__(self, options: Options, channels: int, out_channels: int, resample: str = ""):
        super().__init__()
        groups, self.scale_shift = options.norm_groups, options.use_scale_shift_norm
        self.resample = resample
        self.in_layers = nn.Sequential(
            Norm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        shifts = out_channels * (2 if self.scale_shift else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * options.num_channels, shifts))
        self.out_layers = nn.Sequential(
            Norm(groups, out_channels),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(self._resampled(act(norm(x))))
        x = self._resampled(x)
        shift = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


def attend(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """Scaled dot-product attention, [B, 3*C, L] -> [B, C, L], softmax in float32 at least.

    Channels are [head][q, k, v][dim] in the legacy order and [q, k, v][head][dim] in the
    new one.  q and k are each scaled by dim^(-1/4), which keeps half precision in range.
    """
    b, width, length = qkv.shape
    if new_order:
        q, k, v = qkv.view(b, 3, heads, -1, length).unbind(1)
    else:
        q, k, v = qkv.view(b, heads, 3, -1, length).unbind(2)
    scale = q.shape[2] ** -0.25
    weight = torch.einsum("bhct,bhcs->bhts", q * scale, k * scale)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    weight = weight.to(wide).softmax(dim=-1).to(qkv.dtype)
    return torch.einsum("bhts,bhcs->bhct", weight, v).reshape(b, width // 3, length)


class AttentionBlock(nn.Module):
    """Self-attention over all positions, with a residual connection."""

    def __init__(self, options: Options, channels: int):
        super().__init__()
        per_head = options.num_head_channels
        self.heads = options.num_heads if per_head == -1 else channels // per_head
        self.new_order = options.use_new_attention_order
        self.norm = Norm(options.norm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        h = attend(self.qkv(self.norm(flat)), self.heads, self.new_order)
        return x + self.proj_out(h).view_as(x)


class AttentionPool(nn.Module):
    """Attention pooling [B, C, S, S] -> [B, out]: token 0 is the mean of all positions.

    Always uses the new attention order; the position embedding is added after the mean.
    """

    def __init__(self, size: int, channels: int, head_channels: int, out_channels: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(
            torch.randn(channels, size * size + 1) / channels**0.5
        )
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)
        self.heads = channels // head_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1)
        x = x + self.positional_embedding.to(x.dtype)
        return self.c_proj(attend(self.qkv_proj(x), self.heads, new_order=True))[:, :, 0]


class _Block(nn.Sequential):
    """Layers in sequence; only residual blocks see the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class _Encoder(nn.Module):
    """What U-Net and classifier share: embedding, downward path, middle block."""

    def __init__(self, options: Options):
        super().__init__()
        o = self.options = options
        self.num_classes = o.num_classes
        emb = 4 * o.num_channels
        self.time_embed = nn.Sequential(
            nn.Linear(o.num_channels, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        if o.num_classes is not None:
            self.label_emb = nn.Embedding(o.num_classes, emb)
        ch, ds = int(o.channel_mult[0] * o.num_channels), 1
        self.input_blocks = nn.ModuleList([_Block(nn.Conv2d(o.in_channels, ch, 3, padding=1))])
        self.skip_channels = [ch]
        for level, mult in enumerate(o.channel_mult):
            for _ in range(o.num_res_blocks):
                block: list[nn.Module] = [ResBlock(o, ch, int(mult * o.num_channels))]
                ch = int(mult * o.num_channels)
                if ds in o.attention_ds:
                    block.append(AttentionBlock(o, ch))
                self.input_blocks.append(_Block(*block))
                self.skip_channels.append(ch)
            if level != len(o.channel_mult) - 1:
                down = ResBlock(o, ch, ch, "down") if o.resblock_updown else Downsample(ch)
                self.input_blocks.append(_Block(down))
                self.skip_channels.append(ch)
                ds *= 2
        self.middle_block = _Block(ResBlock(o, ch, ch), AttentionBlock(o, ch), ResBlock(o, ch, ch))
        self.deepest_channels, self.deepest_ds = ch, ds

    def set_torso(self, dtype: torch.dtype) -> None:
        """Half precision as in the original: convolutions of the torso in `dtype`, the rest kept.

        The torso is `input_blocks`, `middle_block` and `output_blocks`.  Its 1-D and 2-D
        convolutions (attention's qkv and proj_out among them) change; norms, the embeddings'
        linear layers, `time_embed`, `label_emb` and `out` stay as they are.  Images go in and
        come out in float32.
        """
        for name, module in self.named_modules():
            in_torso = name.startswith(("input_blocks.", "middle_block.", "output_blocks."))
            if in_torso and isinstance(module, nn.Conv1d | nn.Conv2d):
                module.to(dtype)

    @property
    def _torso_dtype(self) -> torch.dtype:
        return next(self.input_blocks.parameters()).dtype

    def _embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        sinusoids = timestep_embedding(t, self.options.num_channels)
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(sinusoids.to(dtype))
        if (y is None) != (self.num_classes is None):
            kind = "class-conditional: pass" if y is None else "unconditional: it takes no"
            raise ValueError(f"this network is {kind} labels y")
        return emb if y is None else emb + self.label_emb(y)


class UNet(_Encoder):
    """ADM's U-Net: (x_t [B, C, H, W], t [B], y [B] int64 or None) -> [B, out, H, W].

    Built from `Options`.  With `learn_sigma` the output has twice the input's channels: eps first,
    then the variance values v in about [-1, 1].  H and W need only be divisible by the total
    down-sampling factor.  Raises ValueError when labels are missing or superfluous.
    """

    def __init__(self, **options: Any):
        super().__init__(Options(**options))
        o, ch, ds = self.options, self.deepest_channels, self.deepest_ds
        if o.num_heads_upsample != -1:
            o = replace(o, num_heads=o.num_heads_upsample)
        skips = list(self.skip_channels)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(o.channel_mult))):
            for i in range(o.num_res_blocks + 1):
                width = int(mult * o.num_channels)
                block: list[nn.Module] = [ResBlock(o, ch + skips.pop(), width)]
                ch = width
                if ds in o.attention_ds:
                    block.append(AttentionBlock(o, ch))
                if level and i == o.num_res_blocks:
                    block.append(ResBlock(o, ch, ch, "up") if o.resblock_updown else Upsample(ch))
                    ds //= 2
                self.output_blocks.append(_Block(*block))
        out_channels = o.in_channels * (2 if o.learn_sigma else 1)
        last = zeroed(nn.Conv2d(self.skip_channels[0], out_channels, 3, padding=1))
        self.out = nn.Sequential(Norm(o.norm_groups, ch), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self._embed(t, y)
        skips = []
        h = x.to(self._torso_dtype)
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h.to(x.dtype))


class Classifier(_Encoder):
    """ADM's noise-aware classifier: (x_t, t) -> logits [B, num_labels] (attention pool).

    Built from `Options`, with 64 channels a head by default.
    """

    def __init__(self, *, image_size: int, num_labels: int = 1000, **options: Any):
        super().__init__(Options(**{"num_head_channels": 64, **options}))
        self.num_labels = num_labels
        ch, size = self.deepest_channels, image_size // self.deepest_ds
        pool = AttentionPool(size, ch, self.options.num_head_channels, num_labels)
        self.out = nn.Sequential(Norm(self.options.norm_groups, ch), nn.SiLU(), pool)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self._embed(t, None)
        h = x.to(self._torso_dtype)
        for block in self.input_blocks:
            h = block(h, emb)
        return self.out(self.middle_block(h, emb).to(x.dtype))
