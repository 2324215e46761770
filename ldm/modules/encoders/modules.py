"""Encoders of conditions, under the names of CompVis' configs: classes, texts, label maps; CLIP in ``clip.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.clip import FrozenClipImageEmbedder, FrozenCLIPTextEmbedder, OpenClipEmbedder
from ldm.modules.x_transformer import Encoder, TransformerWrapper

__all__ = [
    "BERTEmbedder",
    "BERTTokenizer",
    "ClassEmbedder",
    "FrozenCLIPTextEmbedder",
    "FrozenClipImageEmbedder",
    "OpenClipEmbedder",
    "SpatialRescaler",
    "TransformerEmbedder",
]


class ClassEmbedder(nn.Module):
    """Class numbers to one context token each.

    Args:
        embed_dim: width of the token.
        n_classes: number of classes.
        key: where a batch holds its class numbers.
    """

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class") -> None:
        super().__init__()
        self.key = key
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: Mapping[str, Any], key: str | None = None) -> Tensor:
        """Returns ``[B, 1, embed_dim]`` of a batch with class numbers ``[B] int64`` under ``key``."""
        return self.embedding(batch[key or self.key][:, None])

    def encode(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns ``[B, 1, embed_dim]`` of a batch."""
        return self(batch)


class TransformerEmbedder(nn.Module):
    """Token numbers to context tokens.

    Args:
        n_embed: width of a context token.
        n_layer: depth of the transformer.
        vocab_size: number of different tokens.
        max_seq_len: most tokens of a text.
        device: where the transformer is used first; it moves with the module around it.
        embedding_dropout: rate of dropout of what enters the transformer.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int,
        max_seq_len: int = 77,
        device: str | None = None,
        embedding_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers = Encoder(n_embed, n_layer)
        self.transformer = TransformerWrapper(vocab_size, max_seq_len, layers, embedding_dropout)
        if device is not None:
            self.transformer.to(device)

    def forward(self, tokens: Any) -> Tensor:
        """Returns ``[B, L, n_embed]`` of tokens ``[B, L] int64``."""
        return self.transformer(tokens, return_embeddings=True)

    def encode(self, tokens: Any) -> Tensor:
        """Returns ``[B, L, n_embed]`` of tokens ``[B, L] int64``."""
        return self(tokens)


class BERTEmbedder(TransformerEmbedder):
    """Texts to context tokens, through BERT's vocabulary and a transformer of its own.

    Args:
        n_embed: width of a context token.
        n_layer: depth of the transformer.
        vocab_size: number of different tokens; BERT's 30522.
        max_seq_len: tokens of every text; shorter ones are filled, longer ones cut.
        device: where the transformer is used first; it moves with the module around it.
        use_tokenizer: take texts; else token numbers.
        embedding_dropout: rate of dropout of what enters the transformer.
        tokenizer: name of BERT's tokenizer, or a folder that holds its ``vocab.txt``; read with the first text.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        device: str | None = None,
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
        tokenizer: str = "bert-base-uncased",
    ) -> None:
        super().__init__(n_embed, n_layer, vocab_size, max_seq_len, device, embedding_dropout)
        self.tokenize = BERTTokenizer(max_length=max_seq_len, source=tokenizer) if use_tokenizer else None

    def forward(self, tokens: Any) -> Tensor:
        """Returns ``[B, L, n_embed]`` of texts, or of tokens ``[B, L] int64`` where there is no tokenizer."""
        if self.tokenize is not None:
            tokens = self.tokenize(tokens).to(self.transformer.token_emb.weight.device)
        return super().forward(tokens)


class BERTTokenizer:
    """Texts to the numbers of BERT's word pieces.

    Args:
        max_length: tokens of every text; shorter ones are filled, longer ones cut.
        source: name of the tokenizer, or a folder that holds its ``vocab.txt``; read with the first text.
    """

    def __init__(self, max_length: int = 77, source: str = "bert-base-uncased") -> None:
        self.max_length, self.source = max_length, source
        self._pieces: Any = None

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Returns ``[B, max_length] int64``.

        Raises:
            ValueError: the transformers package, or the vocabulary, cannot be had.
        """
        if self._pieces is None:
            self._pieces = _read_bert_tokenizer(self.source)
        texts = [texts] if isinstance(texts, str) else list(texts)
        encoded = self._pieces(
            texts, truncation=True, max_length=self.max_length, padding="max_length", return_tensors="pt"
        )
        return encoded["input_ids"]


def _read_bert_tokenizer(source: str) -> Any:
    try:
        from transformers import BertTokenizerFast
    except ImportError as error:
        raise ValueError(
            "BERTEmbedder needs the transformers package to read texts; pip install transformers, or set "
            "use_tokenizer: false and give token numbers"
        ) from error
    try:
        return BertTokenizerFast.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no BERT vocabulary in '{source}'; offline, download bert-base-uncased's vocab.txt elsewhere and give "
            "its folder as 'tokenizer'"
        ) from error


class SpatialRescaler(nn.Module):
    """Images or label maps at a smaller size, their channels mixed where ``out_channels`` is given.

    Args:
        n_stages: times the size is multiplied.
        method: of ``torch.nn.functional.interpolate``.
        multiplier: of the size, each time.
        in_channels: of the map.
        out_channels: of what is returned; ``None`` keeps the channels.
        bias: of the mixing.

    Raises:
        ValueError: a negative number of stages, or an unknown method.
    """

    def __init__(
        self,
        n_stages: int = 1,
        method: str = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        methods = ("nearest", "linear", "bilinear", "trilinear", "bicubic", "area")
        if n_stages < 0 or method not in methods:
            raise ValueError(f"got n_stages={n_stages}, method={method}; expected 0 or more, one of {methods}")
        self.n_stages, self.method, self.multiplier = n_stages, method, multiplier
        self.channel_mapper = None if out_channels is None else nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, out_channels, h, w]`` of a map ``[B, in_channels, H, W]``."""
        for _ in range(self.n_stages):
            x = F.interpolate(x, scale_factor=self.multiplier, mode=self.method)
        return x if self.channel_mapper is None else self.channel_mapper(x)

    def encode(self, x: Tensor) -> Tensor:
        """Returns ``[B, out_channels, h, w]`` of a map."""
        return self(x)
