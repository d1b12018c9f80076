"""The zoo's architectures as PyTorch modules, with random weights: what its users would run.

Those of torchvision and transformers are theirs; `unet` and `dlrm` are written after the zoo's
graphs. Every module takes the graph's inputs in order and returns its one output.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

CLASSIFIERS = (
    "resnet50", "mobilenet_v3_large", "efficientnet_b0", "densenet121", "regnet_y_400mf",
    "convnext_tiny", "swin_t", "vit_b_16",
)  # fmt: skip
"""Models of torchvision by their names there."""


class Output(nn.Module):
    """A module whose answer is one entry of what `inner` returns."""

    def __init__(self, inner: nn.Module, key: str, **constants: Any) -> None:
        super().__init__()
        self.inner, self.key, self.constants = inner, key, constants

    def forward(self, *inputs: Tensor) -> Any:
        return self.inner(*inputs, **self.constants)[self.key]


class UNet(nn.Module):
    """Four levels of 32 to 256 channels, 512 in the middle; the batch norms are folded."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (32, 64, 128, 256)
        self.down = nn.ModuleList(map(self.block, (3, *sizes[:-1]), sizes))
        self.middle = self.block(256, 512)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in sizes[::-1])
        self.merge = nn.ModuleList(self.block(2 * n, n) for n in sizes[::-1])
        self.out = nn.Conv2d(32, 2, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.middle(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skipped.pop()], 1))
        out: Tensor = self.out(x)
        return out


class Dlrm(nn.Module):
    """13 dense features, 26 tables of 10,000 x 64, and the products of all pairs of the 27."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10_000, 64) for _ in range(26))
        self.bottom = self.layers(13, 512, 256, 64)
        self.top = self.layers(64 + 351, 1024, 1024, 512, 256)
        self.last = nn.Linear(256, 1)
        self.register_buffer("pairs", torch.triu_indices(27, 27, 1))

    @staticmethod
    def layers(*sizes: int) -> nn.Module:
        layers = (nn.Linear(a, b) for a, b in pairwise(sizes))
        return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        found = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        stack = torch.stack([x, *found], 1)
        products = torch.bmm(stack, stack.transpose(1, 2))
        crossed = products[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.last(self.top(torch.cat([x, crossed], 1))))


def classifier(name: str) -> nn.Module:
    """A model of torchvision."""
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def deeplabv3_resnet50() -> nn.Module:
    """21 classes, no auxiliary head."""
    from torchvision.models import segmentation

    model = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21)
    return Output(fold_batch_norms(model.eval()), "out")


def bert_base() -> nn.Module:
    """Inputs: token ids and the attention mask."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)
    return Output(model, "last_hidden_state")


def gpt2() -> nn.Module:
    """Hidden states of all tokens at once."""
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(attn_implementation="sdpa"))
    return Output(model, "last_hidden_state", use_cache=False)


def whisper_tiny_encoder() -> nn.Module:
    """Log-mel spectrograms of 30 s."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536,
        attn_implementation="sdpa",
    )  # fmt: skip
    return Output(WhisperEncoder(config), "last_hidden_state")


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "unet": UNet,
    "dlrm": Dlrm,
    "deeplabv3_resnet50": deeplabv3_resnet50,
    "bert_base": bert_base,
    "gpt2": gpt2,
    "whisper_tiny_encoder": whisper_tiny_encoder,
}

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build(name: str, precision: str, device: str) -> nn.Module:
    """The model, ready for inference. LookupError if there is none of this name."""
    if name not in CLASSIFIERS and name not in OTHERS:
        raise LookupError(f"PyTorch has no {name}")
    torch.manual_seed(0)
    with torch.device(device):
        model = OTHERS[name]() if name in OTHERS else classifier(name)
    model = fold_batch_norms(model.eval())
    return model.to(device, DTYPES[precision]).to(memory_format=torch.channels_last)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """The model with its batch norms in the convolutions before them, as other engines have it; the
    model as it is if it can't be traced."""
    from torch.fx.experimental.optimization import fuse

    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        return model
    try:
        return fuse(model)
    except Exception:  # whatever keeps the tracer from it, eager code still runs
        return model
