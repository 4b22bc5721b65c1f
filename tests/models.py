"""Models that several test files build on."""

import torch
from torch import nn
from torch.nn import functional as F


class FlatLinear(nn.Module):
    """One layer on flattened digits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        h = self.norms[0](x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.back(F.gelu(self.wide(self.norms[1](x))))


class TiedGPT(nn.Module):
    """A transformer whose head is its embedding, on tokens ``[B, T]``; logits ``[B, vocabulary, T]``."""

    def __init__(self, vocabulary=120, width=32, layers=6):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(16, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


def tokens(vocabulary=120, rows=2, length=8):
    """A batch of tokens and those that follow them."""
    found = torch.randint(vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return found[:, :-1], found[:, 1:]
