"""STDiT2, the network of Open-Sora 1.1: a diffusion transformer over space and time.

Written for its published weights (`hpcai-tech/OpenSora-STDiT-v2-stage3`): names of modules are
those of its state dict, and what looks odd here (RoPE before the norm of q and k, width before
height, a final layer with another modulation) is what those weights were trained with.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALAR_WIDTH = 256  # of the sinusoidal embedding of a scalar


def scalar_features(values: Tensor) -> Tensor:
    """Sinusoids of scalars [N] -> float32 [N, 256]: cosines first, then sines."""
    half = SCALAR_WIDTH // 2
    frequencies = torch.exp(
        -math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=values.device)
    )
    angles = values[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ScalarEmbedder(nn.Module):
    """Scalars [N] -> [N, width]: of timesteps, sizes, aspect ratios, frame counts, frame rates."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SCALAR_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        return self.mlp(scalar_features(values).to(next(self.parameters()).dtype))

    def tiled(self, values: Tensor, batch: int) -> Tensor:
        """The embedding of values [n], n a divisor of the batch, repeated as a whole."""
        return self(values.repeat(batch // len(values)))


class PatchEmbedder(nn.Module):
    """Videos [B, C, T, H, W] -> tokens [B, T', H', W', D], zeros added at the end of odd axes."""

    def __init__(self, patch_size: tuple[int, int, int], channels: int, width: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(channels, width, self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        missing = [-n % p for n, p in zip(x.shape[2:], self.patch_size, strict=True)]
        x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        return self.proj(x).permute(0, 2, 3, 4, 1)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Projects text features; `y_embedding` are those of the learned empty caption, [L, C]."""

    y_embedding: Tensor

    def __init__(self, channels: int, width: int, length: int):
        super().__init__()
        self.register_buffer("y_embedding", torch.zeros(length, channels))
        self.y_proj = Mlp(channels, width, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.y_proj(y)


class RMSNorm(nn.Module):
    """x / rms(x) in float32, then times a weight in x's own dtype."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * values.to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotates neighbouring pairs of features by position times frequency."""

    def __init__(self, width: int):
        super().__init__()
        freqs = 10000.0 ** (-torch.arange(0, width, 2).float() / width)
        self.freqs = nn.Parameter(freqs, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., T, d] with its T-axis as the position."""
        position = torch.arange(x.shape[-2], device=x.device, dtype=self.freqs.dtype)
        angles = (position[:, None] * self.freqs).repeat_interleave(2, dim=-1)
        even, odd = x[..., ::2], x[..., 1::2]
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return (x * angles.cos() + turned * angles.sin()).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention among tokens [N, L, D]; with RoPE *before* the norm of q and k."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: RotaryEmbedding | None = None) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = rope(q), rope(k)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).reshape(n, length, width))


class CrossAttention(nn.Module):
    """Attention of tokens [B, L, D] to text [B, S, D], of which `mask` [B, S] says what counts."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q = self.q_linear(x).view(batch, length, self.heads, -1).transpose(1, 2)
        kv = self.kv_linear(text).view(batch, text.shape[1], 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4)
        counts = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=counts)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Spatial attention, temporal attention, attention to the text, MLP: in this order.

    Tokens are [B, T, S, D]; modulations [B, T or 1, k, D], the same for all positions of a frame.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, width) / width**0.5)
        self.attn = SelfAttention(width, heads, qk_norm)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio), width)
        self.attn_temp = SelfAttention(width, heads, qk_norm)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        mask: Tensor | None,
        spatial: Tensor,
        temporal: Tensor,
        rope: RotaryEmbedding,
    ) -> Tensor:
        batch, frames, positions, width = x.shape
        rows = (self.scale_shift_table + spatial).unsqueeze(-2).unbind(2)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = rows
        seen = modulate(layer_norm(x), shift, scale).flatten(0, 1)
        x = x + gate * self.attn(seen).view_as(x)
        rows = (self.scale_shift_table_temporal + temporal).unsqueeze(-2).unbind(2)
        shift, scale, gate = rows
        seen = modulate(layer_norm(x), shift, scale).transpose(1, 2).flatten(0, 1)
        out = self.attn_temp(seen, rope).view(batch, positions, frames, width).transpose(1, 2)
        x = x + gate * out
        x = x + self.cross_attn(x.flatten(1, 2), text, mask).view_as(x)
        return x + gate_mlp * self.mlp(modulate(layer_norm(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Tokens -> patches, modulated by the bare timestep embedding."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None]).unbind(1)
        return self.linear(modulate(layer_norm(x), shift[:, None, None], scale[:, None, None]))


class STDiT2(nn.Module):
    """Open-Sora 1.1's network; the defaults are those of the published STDiT2-XL/2.

    `input_sq_size` is the image size to whose grid position embeddings are scaled.  Raises
    ValueError unless the width is a multiple of 12 and of the heads.
    """

    def __init__(
        self,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        in_channels: int = 4,
        mlp_ratio: float = 4.0,
        pred_sigma: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 200,
        qk_norm: bool = True,
        input_sq_size: int = 512,
    ):
        super().__init__()
        if hidden_size % 12 or hidden_size % num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of 12 and of num_heads, got {hidden_size}"
            )
        self.hidden_size, self.input_sq_size = hidden_size, input_sq_size
        self.patch_size = patch_size
        self.out_channels = in_channels * (2 if pred_sigma else 1)
        width = hidden_size
        self.x_embedder = PatchEmbedder(patch_size, in_channels, width)
        self.t_embedder = ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.y_embedder = CaptionEmbedder(caption_channels, width, model_max_length)
        self.rope = RotaryEmbedding(width // num_heads)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio, qk_norm) for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, math.prod(self.patch_size) * self.out_channels)
        self.csize_embedder = ScalarEmbedder(width // 3)
        self.ar_embedder = ScalarEmbedder(width // 3)
        self.fl_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        height: Tensor,
        width: Tensor,
        num_frames: Tensor,
        fps: Tensor,
        ar: Tensor,
    ) -> Tensor:
        """Latents [B, C, T, H, W] -> float32 [B, C or 2C, T, H, W], eps and variance fraction.

        `timestep` [B]; `y` [B, 1, L, caption_channels] text features, `mask` [B or a divisor, L]
        the tokens that count.  `height`, `width` in pixels, `num_frames`, `fps` and `ar` (height /
        width) are [n], n a divisor of B: what the video is meant to be.
        """
        dtype, batch = self.x_embedder.proj.weight.dtype, len(x)
        size = x.shape[2:]
        x, timestep, y = x.to(dtype), timestep.to(dtype), y.to(dtype)
        tokens = self.x_embedder(x)
        grid = tokens.shape[1:4]
        tokens = tokens + self.position_embedding(grid[1], grid[2], height, width).to(dtype)
        tokens = tokens.flatten(2, 3)
        info = torch.cat(
            [
                self.csize_embedder.tiled(height, batch),
                self.csize_embedder.tiled(width, batch),
                self.ar_embedder.tiled(ar, batch),
            ],
            dim=1,
        )
        video = self.fl_embedder.tiled(num_frames, batch) + self.fps_embedder.tiled(fps, batch)

        t = self.t_embedder(timestep)
        spatial = self.t_block(t + info).view(batch, 1, 6, -1)
        temporal = self.t_block_temp(t + video).view(batch, 1, 3, -1)
        text = self.y_embedder(y).squeeze(1)
        counts = None if mask is None else mask.repeat(batch // len(mask), 1).bool()
        for block in self.blocks:
            tokens = block(tokens, text, counts, spatial, temporal, self.rope)
        return self.unpatchify(self.final_layer(tokens, t), grid, size).float()

    def position_embedding(self, rows: int, columns: int, height: Tensor, width: Tensor) -> Tensor:
        """[rows, columns, D]: sines and cosines of the column, then of the row.

        Positions are scaled to the grid that an image of `input_sq_size` pixels would have; of
        the sizes in a batch the first counts.
        """
        device = height.device
        quarter = self.hidden_size // 4
        inverse = 10000.0 ** (-torch.arange(quarter, device=device).float() / quarter)
        inverse = inverse.to(self.rope.freqs.dtype).float()
        scale = (height[0].float() * width[0].float()).sqrt() / self.input_sq_size
        base = round((rows * columns) ** 0.5)

        def axis(n: int) -> Tensor:
            position = torch.arange(n, device=device).float() / scale * (base / n)
            angles = position[:, None] * inverse
            return torch.cat([angles.sin(), angles.cos()], dim=1)

        across = axis(columns)[None].expand(rows, -1, -1)
        down = axis(rows)[:, None].expand(-1, columns, -1)
        return torch.cat([across, down], dim=2)

    def unpatchify(self, patches: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
        """[B, T', S, pt*ph*pw*C] -> [B, C, T, H, W]: the channel varies fastest; padding is cut."""
        patches = patches.reshape(len(patches), *grid, *self.patch_size, self.out_channels)
        video = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
        frames, rows, columns = (n * p for n, p in zip(grid, self.patch_size, strict=True))
        video = video.reshape(len(patches), self.out_channels, frames, rows, columns)
        return video[:, :, : size[0], : size[1], : size[2]]
