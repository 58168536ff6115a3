"""The prior networks of DALLE2-pytorch and MindEye2, written anew in PyTorch from their arithmetic.

Names of modules are theirs, so that state dicts are theirs too.
"""

import math

import pytest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


class Norm(nn.Module):
    def __init__(self, dim, stable=False):
        super().__init__()
        self.g, self.stable = nn.Parameter(torch.ones(dim)), stable

    def forward(self, x):
        if self.stable:
            x = x / x.amax(-1, keepdim=True).detach()
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * self.g


class Distances(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(32, heads)

    def forward(self, length):
        rows = []
        for i in range(length):
            row = []
            for j in range(length + 1):
                n = max(i - j, 0)
                if n >= 16:
                    n = min(16 + int(math.log(n / 16) / math.log(128 / 16) * 16), 31)
                row.append(n)
            rows.append(row)
        return self.relative_attention_bias(torch.tensor(rows)).permute(2, 0, 1)


def rotate(x):
    """Rotates pairs of the first 32 features of [..., l, k] by complex multiplication."""
    size = min(32, x.shape[-1])
    rates = torch.tensor([10000.0 ** (-2 * i / size) for i in range(size // 2)])
    angles = torch.arange(x.shape[-2])[:, None] * rates
    pairs = torch.view_as_complex(x[..., :size].unflatten(-1, (-1, 2)).contiguous())
    rotated = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([torch.view_as_real(rotated).flatten(-2), x[..., size:]], -1)


class Attention(nn.Module):
    def __init__(self, dim, heads, dim_head, causal, rotary):
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.norm = Norm(dim)
        self.null_kv = nn.Parameter(torch.randn(2, dim_head))
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), Norm(dim))

    def forward(self, x, bias):
        x = self.norm(x)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x).chunk(2, -1)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        null = self.null_kv[:, None, None].expand(2, len(x), 1, -1)
        k, v = torch.cat([null[0], k], 1), torch.cat([null[1], v], 1)
        sim = 16 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)[:, None] + bias
        if self.causal:
            i = torch.arange(x.shape[1])
            sim = sim.masked_fill(torch.arange(x.shape[1] + 1) > i[:, None] + 1, -math.inf)
        out = sim.softmax(-1) @ v[:, None]
        return self.to_out(out.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def forward(self, x):
        x, gate = x.chunk(2, -1)
        return x * F.silu(gate)


class Transformer(nn.Module):
    def __init__(
        self, dim, depth, heads, dim_head, ff_mult=4, causal=True, rotary_emb=True,
        normformer=False, norm_in=False, norm_out=True, final_proj=True,
    ):  # fmt: skip
        super().__init__()
        if norm_in:
            self.init_norm = Norm(dim)
        self.rel_pos_bias = Distances(heads)
        inner = ff_mult * dim
        self.layers = nn.ModuleList()
        for _ in range(depth):
            middle = Norm(inner) if normformer else nn.Identity()
            feed = [
                Norm(dim),
                nn.Linear(dim, 2 * inner, bias=False),
                Gated(),
                middle,
                nn.Identity(),
            ]
            feed = nn.Sequential(*feed, nn.Linear(inner, dim, bias=False))
            attend = Attention(dim, heads, dim_head, causal, rotary_emb)
            self.layers.append(nn.ModuleList([attend, feed]))
        self.norm = Norm(dim, stable=True) if norm_out else nn.Identity()
        self.project_out = nn.Linear(dim, dim, bias=False) if final_proj else nn.Identity()

    def forward(self, x):
        x = self.init_norm(x) if hasattr(self, "init_norm") else x
        bias = self.rel_pos_bias(x.shape[1])
        for attend, feed in self.layers:
            x = attend(x, bias) + x
            x = feed(x) + x
        return self.project_out(self.norm(x))


class Sines(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.half = dim // 2

    def forward(self, t):
        rates = torch.exp(torch.arange(self.half) * -(math.log(10000) / (self.half - 1)))
        angles = t.float()[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], -1)


class Mlp(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        sizes = [(dim, 2 * out), (2 * out, 2 * out)]
        parts = [nn.Sequential(nn.Linear(*size), nn.SiLU()) for size in sizes]
        self.net = nn.Sequential(*parts, nn.Linear(2 * out, out))

    def forward(self, x):
        return self.net(x)


class Network(nn.Module):
    """The parts that both have: embeddings of the timestep, and the transformer."""

    def __init__(self, dim, num_timesteps, num_time_embeds, **options):
        super().__init__()
        self.dim, out = dim, dim * num_time_embeds
        table = nn.Embedding(num_timesteps, out) if num_timesteps else None
        self.to_time_embeds = nn.Sequential(table or nn.Sequential(Sines(dim), Mlp(dim, out)))
        self.causal_transformer = Transformer(dim, **options)

    def time(self, t):
        return self.to_time_embeds(t).unflatten(-1, (-1, self.dim))


class DiffusionPriorNetwork(Network):
    def __init__(
        self, dim, num_timesteps=None, num_time_embeds=1, num_image_embeds=1, num_text_embeds=1,
        max_text_len=256, **options,
    ):  # fmt: skip
        super().__init__(dim, num_timesteps, num_time_embeds, **options)
        counts = {"to_text_embeds": num_text_embeds, "to_image_embeds": num_image_embeds}
        for name, count in counts.items():
            layer = nn.Linear(dim, dim * count) if count > 1 else nn.Identity()
            setattr(self, name, nn.Sequential(layer))
        self.learned_query = nn.Parameter(torch.randn(dim))
        self.null_text_encodings = nn.Parameter(torch.randn(1, max_text_len, dim))
        self.null_text_embeds = nn.Parameter(torch.randn(1, num_text_embeds, dim))
        self.null_image_embed = nn.Parameter(torch.randn(1, dim))

    def forward(self, image, t, text_embed, text_encodings, keep):
        text = self.to_text_embeds(text_embed).unflatten(-1, (-1, self.dim))
        noised = self.to_image_embeds(image).unflatten(-1, (-1, self.dim))
        drop = ~keep[:, None, None]
        padding = (text_encodings == 0).all(-1, keepdim=True)
        features = torch.where(padding | drop, self.null_text_encodings, text_encodings)
        text = torch.where(drop, self.null_text_embeds, text)
        noised = torch.where(drop, self.null_image_embed, noised)
        query = self.learned_query.expand(len(image), 1, -1)
        x = torch.cat([features, text, self.time(t), noised, query], 1)
        return self.causal_transformer(x)[:, -1]


class PriorNetwork(Network):
    def __init__(
        self, dim, num_timesteps=None, num_time_embeds=1, num_tokens=257,
        learned_query_mode="pos_emb", **options,
    ):  # fmt: skip
        super().__init__(dim, num_timesteps, num_time_embeds, **options)
        self.mode, self.num_tokens = learned_query_mode, num_tokens
        rows = {"pos_emb": num_tokens, "all_pos_emb": 2 * num_tokens + 1}.get(self.mode)
        if rows:
            self.learned_query = nn.Parameter(torch.randn(rows, dim) * dim**-0.5)
        self.null_brain_embeds = nn.Parameter(torch.randn(num_tokens, dim))
        self.null_image_embed = nn.Parameter(torch.randn(num_tokens, dim))

    def forward(self, image, t, brain, keep):
        drop = ~keep[:, None, None]
        brain = torch.where(drop, self.null_brain_embeds, brain)
        image = torch.where(drop, self.null_image_embed, image)
        if self.mode == "pos_emb":
            image = image + self.learned_query
        x = torch.cat([brain, self.time(t), image], 1)
        x = x + self.learned_query if self.mode == "all_pos_emb" else x
        return self.causal_transformer(x)[:, -self.num_tokens :]
