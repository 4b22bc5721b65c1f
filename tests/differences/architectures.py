"""Models of every common kind, small, with data and options: ``ARCHITECTURES[name]() -> (model, data, options)``."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastscape import zoo

ARCHITECTURES = {}
_IMAGES = (3, 3, 32, 32)


def architecture(function):
    """Register a builder under its name."""

    def build():
        torch.manual_seed(0)
        found = function()
        return found if len(found) == 3 else (*found, {})

    ARCHITECTURES[function.__name__] = build
    return function


class Forward(nn.Module):
    """A module whose forward is given."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def classes(count, *shape, bound=3):
    return torch.randint(0, bound, (count, *shape))


def images(count=3, size=32, channels=3, bound=10):
    return [(torch.randn(count, channels, size, size), classes(count, bound=bound))]


def vectors(count=6, width=8, bound=3):
    return [(torch.randn(count, width), classes(count, bound=bound))]


def sequences(count=3, length=7, width=8, bound=3):
    return [(torch.randn(count, length, width), classes(count, bound=bound))]


def settled(model, data, passes=2):
    """Running statistics of batch norm from the data, layer scales that matter."""
    model.train()
    with torch.no_grad():
        for _ in range(passes):
            model(data[0][0])
    for name, parameter in model.named_parameters():
        if "layer_scale" in name or "gamma" in name:
            nn.init.constant_(parameter, 0.3)
    return model.eval()


def lin(width=8, out=8):
    return nn.Linear(width, out)


def vision():
    return pytest.importorskip("torchvision").models


# ---------------------------------------------------------------- vision
@architecture
def resnet18():
    data = images(2, 32)
    return settled(zoo.models.resnet18(), data), data


@architecture
def small_resnet():
    resnet = vision().resnet
    data = images(3, 32)
    model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10, zero_init_residual=False)
    return settled(model, data), data


@architecture
def bottleneck_resnext():
    resnet = vision().resnet
    data = images(2, 32)
    return settled(resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], 10, groups=4, width_per_group=4), data), data


@architecture
def mobilenet_v3():
    data = images(2, 48)
    return settled(vision().mobilenet_v3_small(num_classes=10), data), data


@architecture
def mobilenet_v2():
    data = images(2, 32)
    return settled(vision().mobilenet_v2(num_classes=10, width_mult=0.25), data), data


@architecture
def efficientnet():
    models = vision()
    config = models.efficientnet.MBConvConfig
    blocks = [config(1, 3, 1, 16, 8, 1), config(4, 3, 2, 8, 16, 2), config(4, 5, 2, 16, 24, 1)]
    data = images(2, 32)
    model = models.EfficientNet(
        blocks, 0.2, stochastic_depth_prob=0.2, num_classes=10, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)
    )
    return settled(model, data), data


@architecture
def efficientnet_v2():
    models = vision()
    blocks = [models.efficientnet.FusedMBConvConfig(2, 3, 1, 8, 8, 1), models.efficientnet.MBConvConfig(4, 3, 2, 8, 16, 1)]
    data = images(2, 32)
    return settled(models.EfficientNet(blocks, 0.2, num_classes=10, last_channel=32), data), data


@architecture
def convnext():
    models = vision()
    block = models.convnext.CNBlockConfig
    data = images(2, 32)
    model = models.ConvNeXt([block(8, 16, 1), block(16, 24, 1), block(24, None, 1)], stochastic_depth_prob=0.1, num_classes=10)
    return settled(model, data), data


@architecture
def densenet():
    data = images(2, 32)
    model = vision().DenseNet(4, (2, 2), 8, bn_size=2, num_classes=10)
    return settled(model, data), data


@architecture
def vision_transformer():
    model = vision().VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # zeros, along which nothing moves
    return model, images(2, 32)


@architecture
def swin():
    model = vision().SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.1, num_classes=10)
    return model, images(2, 32)


@architecture
def swin_v2():
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    vision()
    model = vision().SwinTransformer(
        [4, 4],
        16,
        [2],
        [2],
        [4, 4],
        stochastic_depth_prob=0.0,
        num_classes=10,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )
    return model, images(2, 32)


@architecture
def squeeze_excitation():
    class Squeeze(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

        def forward(self, x):
            return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))

    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), Squeeze(8), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    return body, images(3, 12, bound=3)


@architecture
def unet():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.mid = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.up, self.out = nn.ConvTranspose2d(6, 6, 2, 2), nn.Conv2d(12, 4, 1)

        def forward(self, x):
            first = F.relu(self.down(x))
            second = F.relu(self.mid(F.max_pool2d(first, 2)))
            return self.out(torch.cat((first, F.relu(self.up(second))), 1))

    return Net(), [(torch.randn(2, 3, 8, 8), classes(2, 8, 8, bound=4))]


# ---------------------------------------------------------------- norms
@architecture
def batch_norm_batch():
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )
    return body, images(4, 12, bound=3), {"batch_norm": "batch"}


@architecture
def batch_norm_one_dimension():
    body = nn.Sequential(lin(8, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.BatchNorm1d(7, affine=False), nn.Linear(7, 3))
    return body, vectors(), {"batch_norm": "batch"}


@architecture
def batch_norm_first():
    body = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    return body, images(4, 8, bound=3), {"batch_norm": "batch"}


@architecture
def batch_norm_first_running():
    body = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    data = images(4, 8, bound=3)
    return settled(body, data), data


@architecture
def group_norm():
    body = nn.Sequential(
        nn.GroupNorm(1, 3),
        nn.Conv2d(3, 6, 3, groups=3),
        nn.GroupNorm(2, 6),
        nn.SiLU(),
        nn.GroupNorm(3, 6, affine=False),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(150, 3),
    )
    return body, images(4, 12, bound=3)


@architecture
def instance_norm():
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.InstanceNorm2d(6, affine=True),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.InstanceNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(256, 3),
    )
    return body, images(4, 12, bound=3)


@architecture
def instance_norm_with_statistics():
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(600, 3),
    )
    return body, images(3, 12, bound=3)


@architecture
def layer_norm_first():
    body = nn.Sequential(
        nn.LayerNorm(8), lin(), nn.LayerNorm(8, elementwise_affine=False), nn.Tanh(), nn.LayerNorm(8, bias=False)
    )
    return nn.Sequential(body, lin(8, 3)), vectors()


@architecture
def norms_by_hand():
    def forward(self, x):
        z = self.a(x)
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True) + 1e-5).sqrt() * self.b.weight.mean(0)
        z = z + z.std(-1, unbiased=False, keepdim=True) + z.norm(dim=-1, keepdim=True) + F.normalize(z, dim=-1)
        return self.o(z / torch.linalg.vector_norm(z, dim=-1, keepdim=True))

    return Forward(forward, a=lin(), b=lin(), o=lin(8, 3)), vectors()


@architecture
def rms_norm_swiglu():
    def forward(self, x):
        return self.o(F.silu(self.a(self.n(x))) * self.b(x) + self.n(self.a(x)))

    return Forward(forward, n=nn.RMSNorm(8), a=lin(), b=lin(), o=lin(8, 3)), vectors()


@architecture
def weight_norm():
    wrap = nn.utils.parametrizations.weight_norm
    return nn.Sequential(wrap(lin()), nn.Tanh(), wrap(lin(8, 3), dim=1)), vectors()


@architecture
def weight_norm_convolution():
    wrap = nn.utils.parametrizations.weight_norm
    return nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.Tanh(), wrap(nn.Conv2d(4, 4, 3)), nn.Flatten(), lin(256, 3)), images(
        2, 12, bound=3
    )


@architecture
def spectral_norm():
    wrap = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(wrap(lin()), nn.Tanh(), lin(8, 3)), vectors()


# ---------------------------------------------------------------- transformers
def _encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@architecture
def encoder_post_norm():
    return Forward(lambda s, x: s.o(s.t(x).mean(1)), t=_encoder(), o=lin(8, 3)), sequences()


@architecture
def encoder_pre_norm_masked():
    def forward(self, x):
        padding = torch.arange(7).expand(3, 7) > 4
        return self.o(self.t(x, mask=nn.Transformer.generate_square_subsequent_mask(7), src_key_padding_mask=padding).mean(1))

    def forward_bool(self, x):
        padding = torch.arange(7).expand(3, 7) > 4
        return self.o(self.t(x, mask=torch.ones(7, 7, dtype=torch.bool).triu(1), src_key_padding_mask=padding).mean(1))

    return Forward(forward_bool, t=_encoder(norm_first=True, activation="gelu"), o=lin(8, 3)), sequences()


@architecture
def encoder_causal():
    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=x.dtype)
        return self.o(self.t(x, mask=mask, is_causal=True).mean(1))

    return Forward(forward, t=_encoder(norm_first=True), o=lin(8, 3)), sequences()


@architecture
def decoder():
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    return Forward(lambda s, x: s.o(s.t(x, s.m(x)).mean(1)), t=nn.TransformerDecoder(layer, 2), m=lin(), o=lin(8, 3)), sequences()


@architecture
def transformer():
    core = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.o(self.t(x, x[:, :4], tgt_mask=nn.Transformer.generate_square_subsequent_mask(4, dtype=x.dtype)).mean(1))

    return Forward(forward, t=core, o=lin(8, 3)), sequences()


@architecture
def attention_with_weights():
    def forward(self, x):
        out, weights = self.m(x, x, x, need_weights=True)
        return self.o(out.mean(1)) + self.w(weights.flatten(1))

    attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)
    return Forward(forward, m=attention, o=lin(8, 3), w=lin(63, 3)), sequences()


@architecture
def attention_other_widths():
    def forward(self, x):
        memory = self.k(x)
        return self.o(
            self.m(x.transpose(0, 1), memory.transpose(0, 1), x.transpose(0, 1)[..., :5], need_weights=False)[0].mean(0)
        )

    return Forward(forward, m=nn.MultiheadAttention(8, 2, kdim=6, vdim=5), k=lin(8, 6), o=lin(8, 3)), sequences()


@architecture
def attention_causal_scaled():
    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7)
        out = out + F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[:7, :7])
        return self.o(out.transpose(1, 2).flatten(2).mean(1))

    model = Forward(forward, qkv=lin(8, 24), o=lin(8, 3))
    model.bias = nn.Parameter(torch.randn(7, 7))
    return model, sequences()


@architecture
def attention_grouped_queries():
    def forward(self, x):
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.qkv(x).split([16, 8, 8], -1))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2).mean(1))

    return Forward(forward, qkv=lin(8, 32), o=lin(16, 3)), sequences()


@architecture
def attention_by_hand():
    def forward(self, x):
        q, k, v = self.qkv(x).view(3, 7, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) / 2.0
        scores = scores.masked_fill(torch.ones(7, 7).tril() == 0, float("-inf"))
        weights = F.softmax(scores, -1)
        return self.o((weights @ v).transpose(1, 2).reshape(3, 7, 8).mean(1))

    return Forward(forward, qkv=lin(8, 24), o=lin(8, 3)), sequences()


@architecture
def rotary_decoder():
    def rotate(q):
        angles = torch.outer(torch.arange(7.0, dtype=q.dtype), 0.5 ** torch.arange(4.0, dtype=q.dtype)).repeat(1, 2)
        return q * angles.cos() + torch.cat((-q[..., 4:], q[..., :4]), -1) * angles.sin()

    def forward(self, tokens):
        x = self.e(tokens)
        q, k, v = self.q(self.n(x)), self.k(self.n(x)), self.v(self.n(x))
        x = x + self.p(F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True))
        x = x + self.d(F.silu(self.g(self.n(x))) * self.u(self.n(x)))
        return F.linear(self.n(x), self.e.weight).transpose(1, 2)

    model = Forward(
        forward,
        e=nn.Embedding(11, 8),
        n=nn.RMSNorm(8),
        q=lin(),
        k=lin(),
        v=lin(),
        p=lin(),
        g=lin(8, 12),
        u=lin(8, 12),
        d=lin(12, 8),
    )
    return model, [(classes(3, 7, bound=11), classes(3, 7, bound=11))]


def _bert(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        attn_implementation=attention,
    )
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[0, 5:] = 0
    data = [({"input_ids": classes(3, 8, bound=30), "attention_mask": mask}, classes(3))]
    model = transformers.BertForSequenceClassification(config)
    return model, data, {"loss": lambda m, b: F.cross_entropy(m(**b[0]).logits, b[1])}


@architecture
def bert_eager():
    return _bert("eager")


@architecture
def bert_sdpa():
    return _bert("sdpa")


def next_token(model, tokens):
    """The usual loss of language models, without their rounding to float32."""
    return F.cross_entropy(model(input_ids=tokens).logits[:, :-1].transpose(1, 2), tokens[:, 1:])


def _gpt2(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=30,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return transformers.GPT2LMHeadModel(config), [classes(3, 8, bound=30)], {"loss": next_token}


@architecture
def gpt2_eager():
    return _gpt2("eager")


@architecture
def gpt2_sdpa():
    return _gpt2("sdpa")


@architecture
def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    return transformers.LlamaForCausalLM(config), [classes(3, 8, bound=30)], {"loss": lambda m, b: m(input_ids=b, labels=b).loss}


@architecture
def t5():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=30,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    return (
        transformers.T5ForConditionalGeneration(config),
        [classes(3, 8, bound=30)],
        {"loss": lambda m, b: m(input_ids=b, labels=b).loss},
    )


# ---------------------------------------------------------------- recurrent
@architecture
def gru():
    return Forward(
        lambda s, x: s.o(s.r(x)[0][:, -1]), r=nn.GRU(8, 6, 2, batch_first=True, bidirectional=True), o=lin(12, 3)
    ), sequences()


@architecture
def lstm():
    return Forward(
        lambda s, x: s.o(s.r(x)[0][:, -1]), r=nn.LSTM(8, 6, 2, batch_first=True, dropout=0.2), o=lin(6, 3)
    ), sequences()


@architecture
def lstm_projected():
    return Forward(
        lambda s, x: s.o(s.r(x)[1][0][0]), r=nn.LSTM(8, 6, proj_size=4, batch_first=True, bidirectional=True), o=lin(4, 3)
    ), sequences()


@architecture
def rnn():
    return Forward(
        lambda s, x: s.o(s.r(x)[0][:, -1]), r=nn.RNN(8, 6, nonlinearity="relu", batch_first=True), o=lin(6, 3)
    ), sequences()


@architecture
def cells():
    def forward(self, x):
        h = x.new_zeros(len(x), 6)
        g, c = x.new_zeros(len(x), 6), x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = self.gru(x[:, t], h)
            g, c = self.lstm(h, (g, c))
        return self.o(g)

    return Forward(forward, gru=nn.GRUCell(8, 6), lstm=nn.LSTMCell(6, 6), o=lin(6, 3)), sequences()


@architecture
def packed_lengths():
    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 5, 2]), batch_first=True)
        return self.o(self.r(packed)[1][-1])

    return Forward(forward, r=nn.GRU(8, 6, batch_first=True), o=lin(6, 3)), sequences()


# ---------------------------------------------------------------- convolutions
@architecture
def convolutions():
    def forward(self, x):
        z = self.a(x).tanh()
        z = self.b(F.interpolate(z, scale_factor=2.0, mode="nearest")).tanh()
        z = self.c(z).tanh()
        return self.o(z.mean(-1))

    model = Forward(
        forward,
        a=nn.Conv1d(3, 6, 3, padding="same"),
        b=nn.Conv1d(6, 6, 3, groups=6, padding_mode="circular", padding=1),
        c=nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2),
        o=lin(4, 3),
    )
    return model, [(torch.randn(3, 3, 8), classes(3))]


@architecture
def convolutions_3d():
    model = nn.Sequential(
        nn.Conv3d(2, 4, 2, padding=1, padding_mode="replicate"),
        nn.BatchNorm3d(4),
        nn.SiLU(),
        nn.ConvTranspose3d(4, 2, 2, stride=2),
        nn.MaxPool3d(2),
        nn.AvgPool3d(2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    data = [(torch.randn(2, 2, 4, 4, 4), classes(2))]
    model(data[0][0])
    return model, data


@architecture
def padded_dilated_strided():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, dilation=2, padding=2, padding_mode="reflect", groups=1, bias=False),
        nn.LeakyReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.PixelShuffle(2),
        nn.ZeroPad2d(1),
        nn.MaxPool2d(3, 2, ceil_mode=True, padding=1),
        nn.Unfold(2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    data = images(2, 12, bound=3)
    model(data[0][0])
    return model, data


@architecture
def interpolated():
    def forward(self, x):
        z = self.a(x)
        z = F.interpolate(z, size=9, mode="bilinear", align_corners=True) + F.interpolate(z, size=9, mode="bicubic")
        z = z + F.interpolate(z[..., :4, :4], size=(9, 9), mode="bilinear", antialias=True) + F.adaptive_avg_pool2d(z, 9)
        return self.o(F.avg_pool2d(z.tanh(), 3).flatten(1))

    return Forward(forward, a=nn.Conv2d(3, 4, 3), o=lin(36, 3)), images(2, 8, bound=3)


@architecture
def single_samples():
    def forward(self, x):
        return torch.stack([self.o(F.max_pool2d(self.c(sample), 2).flatten()) for sample in x])

    return Forward(forward, c=nn.Conv2d(3, 4, 3), o=lin(100, 3)), images(2, 12, bound=3)


# ---------------------------------------------------------------- functions
_SMOOTH = ("tanh", "sigmoid", "silu", "gelu", "softplus", "mish", "softsign", "logsigmoid", "tanhshrink", "softmin")
_KINKED = (
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "hardshrink",
    "softshrink",
    "threshold",
    "rrelu",
)
_CALLED = {"threshold": lambda z: F.threshold(z, 0.1, 0.1), "softmin": lambda z: F.softmin(z, -1)}


@architecture
def smooth_activations():
    def forward(self, x):
        z = self.l(x)
        parts = [_CALLED.get(name, getattr(F, name))(z) for name in _SMOOTH]
        return self.o(torch.stack([*parts, F.gelu(z, approximate="tanh"), F.softplus(z, beta=2.0)]).sum(0))

    return Forward(forward, l=lin(), o=lin(8, 3)), vectors()


@architecture
def kinked_activations():
    def forward(self, x):
        z = self.l(x)
        parts = [_CALLED.get(name, getattr(F, name))(z) for name in _KINKED]
        return self.o(
            torch.stack([*parts, self.p(z), self.q(z), z.abs(), z.clamp(-0.5, 0.7), F.glu(torch.cat((z, z.flip(1)), 1))]).sum(0)
        )

    return Forward(forward, l=lin(), o=lin(8, 3), p=nn.PReLU(), q=nn.PReLU(8)), vectors()


@architecture
def mathematics():
    def forward(self, x):
        z = self.l(x)
        y = z.square() + 1
        parts = [
            y.log(),
            y.log1p(),
            y.log2(),
            y.log10(),
            z.exp(),
            z.expm1(),
            y.sqrt(),
            y.rsqrt(),
            y.reciprocal(),
            z.sin(),
            z.cos(),
            z.erf(),
            z.atan(),
            z.sinh(),
            z.cosh(),
            z**3,
            y**1.5,
            y**-0.5,
            y**-2,
            z / y,
            1 / y,
            2.0 - z,
            z.exp2(),
            torch.addcmul(z, y, z, value=0.3),
            torch.addcdiv(z, z, y),
            z.lerp(y, 0.3),
            torch.hypot(z, y),
            z.sign() * z,
            torch.atan2(z, y),
            y ** (z * 0.1),
            2.0**z,
            z.asinh(),
            torch.special.ndtr(z),
            z.sigmoid().logit(),
            z.log_softmax(-1),
            z.logsumexp(-1, keepdim=True),
            z.tan(),
            z.erfc(),
            z.cumsum(-1),
            z.sub(y, alpha=0.5),
            z.add(y, alpha=2),
            torch.logaddexp(z, y),
            z.var(-1, keepdim=True),
            z.prod(-1, keepdim=True),
        ]
        return self.o(sum(parts) * 0.1)

    return Forward(forward, l=lin(), o=lin(8, 3)), vectors()


@architecture
def choices():
    def forward(self, x):
        z, y = self.l(x), self.k(x)
        values, index = z.topk(3, -1)
        parts = [
            torch.sort(z, -1)[0],
            torch.where(z > 0, z, z.exp() - 1),
            torch.maximum(z, y),
            torch.minimum(z, y),
            z.max(-1, keepdim=True)[0],
            y.amin(-1, keepdim=True),
            values.sum(-1, keepdim=True),
            y.gather(-1, index).sum(-1, keepdim=True),
            z.clamp(min=y),
            z.median(-1, keepdim=True)[0],
            z.argsort(-1) * y,
            (z > y) * z,
            torch.where((z > 0) & ~(y > 0.2), z, y),
            z.masked_fill(y > 0, 0.3),
            F.one_hot(z.argmax(-1), 8) * y,
            z.max(),
            z.amax((0, 1)),
            z.relu().sum().clamp(max=100.0),
        ]
        return self.o(sum(parts).tanh())

    return Forward(forward, l=lin(), k=lin(), o=lin(8, 3)), vectors()


@architecture
def mixture_dense():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = lin(8, 4), nn.ModuleList([lin() for _ in range(4)])

        def forward(self, x):
            chances = self.gate(x).softmax(-1)
            _, index = chances.topk(2)
            mask = torch.zeros_like(chances).scatter(-1, index, 1.0) * chances
            return sum(mask[:, j : j + 1] * expert(x) for j, expert in enumerate(self.experts))

    return nn.Sequential(Mixture(), lin(8, 3)), vectors()


@architecture
def products():
    def forward(self, x):
        z = self.l(x)
        y = torch.einsum("bti,bsi->bts", z, x).matmul(z) + torch.einsum("bti,ij,bsj->bts", z, self.l.weight, z) @ z
        y = y + torch.einsum("bti->bi", z)[:, None] + torch.baddbmm(z, z @ z.mT, z, beta=0.5, alpha=0.1)
        y = y + self.b(z, x) + torch.addmm(z[0], self.l.weight[:7, :7], z[1], alpha=0.3) + torch.outer(z[0, :, 0], z[1, 0])
        y = (
            y
            + (z[0] @ self.l.weight[0])[:, None]
            + torch.dot(z[0, 0], z[1, 0])
            + torch.tensordot(z, self.l.weight, dims=([2], [0]))
        )
        return self.o(y.mean(1) * 0.1)

    return Forward(forward, l=lin(), b=nn.Bilinear(8, 8, 8), o=lin(8, 3)), sequences()


@architecture
def structure():
    def forward(self, x):
        z = self.l(x)
        pieces = torch.cat((z.roll(1, -1), z.flip(1)), -1).unflatten(-1, (2, 8)).movedim(-2, 0)
        y = pieces[0] + pieces[1].repeat(1, 1, 1) + z.tril() + z.triu(1) + F.pad(z, (1, 1, 0, 0))[..., :8]
        y = y + z.index_select(1, torch.tensor([0, 0, 2, 3, 1, 5, 6])) + z[:, torch.arange(7)] + z.repeat_interleave(2, 1)[:, ::2]
        y = (
            y
            + torch.stack(z.unbind(1), 1)
            + z.expand(2, *z.shape).mean(0)
            + z.as_strided(z.shape, z.stride())
            + z.diagonal(dim1=1, dim2=2).sum()
        )
        y = (
            y
            + z[..., None, :].squeeze(-2)
            + z.new_zeros(z.shape).index_put((torch.arange(3),), z)
            + torch.zeros_like(z).index_add(0, torch.arange(3), z)
        )
        y = (
            y
            + torch.zeros_like(z).scatter_add(1, torch.zeros(z.shape, dtype=torch.long), z)
            + z.unfold(1, 3, 1).sum((1, 3))[:, None]
            + z.narrow(1, 0, 1)
        )
        y = (
            y
            + torch.meshgrid(z[0, 0], z[1, 0], indexing="ij")[0].diag()
            + z.swapaxes(1, 2).reshape(z.shape)
            + z[z.new_ones(3, dtype=torch.bool)]
        )
        return self.o(y.mean(1))

    return Forward(forward, l=lin(), o=lin(8, 3)), sequences()


@architecture
def unknown_functions():
    return Forward(lambda s, x: s.o(torch.lgamma(1 + s.l(x) ** 2)), l=lin(), o=lin(8, 3)), vectors()


@architecture
def linear_solve():
    return Forward(
        lambda s, x: s.o(torch.linalg.solve(s.l.weight @ s.l.weight.T + 3 * torch.eye(8, dtype=x.dtype), s.l(x).T).T),
        l=lin(),
        o=lin(8, 3),
    ), vectors()


@architecture
def fourier():
    return Forward(lambda s, x: s.o(torch.fft.rfft(s.l(x)).abs()), l=lin(), o=lin(5, 3)), vectors()


# ---------------------------------------------------------------- how models are written
@architecture
def in_place():
    def forward(self, x):
        z = self.l(x).add_(self.k(x))
        z += 1
        z = z.mul_(0.3).tanh_()
        return self.o(z + F.relu(self.k(x), inplace=True))

    return Forward(forward, l=lin(), k=lin(), o=lin(8, 3)), vectors()


@architecture
def in_place_on_views():
    def forward(self, x):
        z = self.l(x)
        z[:, 0] = z[:, 1] * 2
        z[:, 2:4] += 1
        z[:, 5].mul_(0.5)
        out = torch.zeros(len(x), 8, dtype=x.dtype)
        out[:, 1:] = z[:, :-1]
        return self.o(torch.tanh(z) + out)

    return Forward(forward, l=lin(), k=lin(), o=lin(8, 3)), vectors()


@architecture
def tied_embedding():
    def forward(self, tokens):
        return F.linear(torch.tanh(self.e(tokens)), self.e.weight).transpose(1, 2)

    return Forward(forward, e=nn.Embedding(11, 8, padding_idx=0)), [(classes(3, 7, bound=11), classes(3, 7, bound=11))]


@architecture
def embedding_bag():
    return nn.Sequential(nn.EmbeddingBag(11, 8, mode="mean"), nn.Tanh(), lin(8, 3)), [(classes(3, 7, bound=11), classes(3))]


@architecture
def checkpointed():
    return Forward(lambda s, x: s.o(checkpoint(lambda t: s.l(t).tanh(), x, use_reentrant=False)), l=lin(), o=lin(8, 3)), vectors()


class Straight(torch.autograd.Function):
    """A root whose gradient is said to be one."""

    @staticmethod
    def forward(ctx, x):
        return x / (1 + x.abs())

    @staticmethod
    def backward(ctx, g):
        return g


@architecture
def custom_function():
    return Forward(lambda s, x: s.o(Straight.apply(s.l(x))), l=lin(), o=lin(8, 3)), vectors(), {}


@architecture
def branch_on_parameters():
    def forward(self, x):
        z = self.l(x)
        return self.o(torch.tanh(z) if z.square().sum() > -1 else torch.sigmoid(z))

    return Forward(forward, l=lin(), o=lin(8, 3)), vectors()


@architecture
def mixed_precision():
    return Forward(lambda s, x: s.o(s.l(x).float().softmax(-1).to(x.dtype)), l=lin(), o=lin(8, 3)), vectors()


@architecture
def graph_convolution():
    def forward(self, x):
        edges = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
        for layer in (self.a, self.b):
            z = layer(x)
            x = torch.zeros_like(z).index_add(0, edges[1], z[edges[0]]).relu() + z
        return self.o(x)

    return Forward(forward, a=lin(), b=lin(), o=lin(8, 3)), vectors()


@architecture
def mixer():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.n, self.m = nn.LayerNorm(8), nn.LayerNorm(8)
            self.t = nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 7))
            self.c = nn.Sequential(lin(8, 12), nn.GELU(), lin(12, 8))

        def forward(self, x):
            x = x + self.t(self.n(x).transpose(1, 2)).transpose(1, 2)
            return x + self.c(self.m(x))

    return Forward(lambda s, x: s.o(s.b(x).mean(1)), b=nn.Sequential(Block(), Block()), o=lin(8, 3)), sequences()


# ---------------------------------------------------------------- losses
def _loss(name, criterion, targets, model=None, inputs=None):
    def build():
        body = model() if model else nn.Sequential(lin(), nn.Tanh(), lin(8, 3))
        return body, [(torch.randn(6, 8) if inputs is None else inputs(), targets())], {"criterion": criterion}

    build.__name__ = name
    architecture(build)


_WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


def _ignoring():
    targets = classes(6)
    targets[2] = -100
    return targets


_loss("loss_cross_entropy_weighted", nn.CrossEntropyLoss(weight=_WEIGHTS), lambda: classes(6))
_loss("loss_cross_entropy_ignoring", partial(F.cross_entropy, ignore_index=-100), _ignoring)
_loss("loss_cross_entropy_smoothed", partial(F.cross_entropy, label_smoothing=0.1), lambda: classes(6))
_loss("loss_cross_entropy_smoothed_weighted", nn.CrossEntropyLoss(weight=_WEIGHTS, label_smoothing=0.2), _ignoring)
_loss("loss_cross_entropy_soft", F.cross_entropy, lambda: torch.rand(6, 3).softmax(-1))
_loss(
    "loss_cross_entropy_soft_smoothed",
    nn.CrossEntropyLoss(weight=_WEIGHTS, label_smoothing=0.1),
    lambda: torch.rand(6, 3).softmax(-1),
)
_loss("loss_nll", F.nll_loss, lambda: classes(6), lambda: nn.Sequential(lin(8, 3), nn.LogSoftmax(-1)))
_loss("loss_nll_weighted", nn.NLLLoss(weight=_WEIGHTS), lambda: classes(6), lambda: nn.Sequential(lin(8, 3), nn.LogSoftmax(-1)))
_loss(
    "loss_nll_2d",
    F.nll_loss,
    lambda: classes(2, 3, 3),
    lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.LogSoftmax(1)),
    lambda: torch.randn(2, 2, 4, 4),
)
_loss("loss_mse", F.mse_loss, lambda: torch.randn(6, 3))
_loss("loss_l1", F.l1_loss, lambda: torch.randn(6, 3))
_loss("loss_huber", partial(F.huber_loss, delta=0.5), lambda: torch.randn(6, 3))
_loss("loss_smooth_l1", partial(F.smooth_l1_loss, beta=0.3), lambda: torch.randn(6, 3))
_loss("loss_bce_logits", F.binary_cross_entropy_with_logits, lambda: torch.randint(0, 2, (6, 3)).double())
_loss("loss_bce_logits_soft", nn.BCEWithLogitsLoss(pos_weight=_WEIGHTS), lambda: torch.rand(6, 3))
_loss("loss_bce", F.binary_cross_entropy, lambda: torch.rand(6, 3), lambda: nn.Sequential(lin(8, 3), nn.Sigmoid()))
_loss(
    "loss_kl",
    partial(F.kl_div, reduction="batchmean"),
    lambda: torch.rand(6, 3).softmax(-1),
    lambda: nn.Sequential(lin(8, 3), nn.LogSoftmax(-1)),
)
_loss("loss_cosine", lambda o, t: 1 - F.cosine_similarity(o, t).mean(), lambda: torch.randn(6, 3))
_loss("loss_poisson", F.poisson_nll_loss, lambda: torch.rand(6, 3))
_loss("loss_gaussian", lambda o, t: F.gaussian_nll_loss(o[:, :1], t[:, :1], o[:, 1:2].exp()), lambda: torch.randn(6, 3))
_loss("loss_hinge", F.multi_margin_loss, lambda: classes(6))
_loss("loss_soft_margin", F.soft_margin_loss, lambda: torch.randint(0, 2, (6, 3)).double() * 2 - 1)
_loss("loss_multilabel_soft_margin", F.multilabel_soft_margin_loss, lambda: torch.randint(0, 2, (6, 3)).double())
_loss("loss_margin", lambda o, t: F.margin_ranking_loss(o[:, 0], o[:, 1], t[:, 0].sign()), lambda: torch.randn(6, 3))
_loss("loss_triplet", lambda o, t: F.triplet_margin_loss(o[:2], o[2:4], o[4:], swap=True), lambda: torch.randn(6, 3))
_loss(
    "loss_ctc",
    lambda o, t: F.ctc_loss(o.log_softmax(-1).transpose(0, 1), t, torch.full((3,), 7), torch.full((3,), 2)),
    lambda: classes(3, 2, bound=2) + 1,
    lambda: lin(8, 3),
    lambda: torch.randn(3, 7, 8),
)
