"""Encoders of conditions (classes, texts, label maps), with the names in CompVis' configs; CLIP is in ``clip.py``."""

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
    """Encodes each class number as one context token.

    Args:
        embed_dim: width of the token.
        n_classes: number of classes.
        key: key of a batch for the class numbers.
    """

    reads = "classes"

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class") -> None:
        super().__init__()
        self.key, self.n_classes = key, n_classes
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: Mapping[str, Any], key: str | None = None) -> Tensor:
        """Returns ``[B, 1, embed_dim]`` for a batch with class numbers ``[B] int64`` under ``key``.

        Raises:
            ValueError: the batch has no class numbers under this key.
        """
        key = key or self.key
        if not isinstance(batch.get(key), Tensor):
            raise ValueError(f"key: got '{key}' for the class numbers, expected an entry with numbers: class_label")
        return self.embedding(batch[key][:, None])

    def encode(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns ``[B, 1, embed_dim]`` for a batch."""
        return self(batch)


class TransformerEmbedder(nn.Module):
    """Encodes token numbers as context tokens with a transformer.

    Args:
        n_embed: width of a context token.
        n_layer: depth of the transformer.
        vocab_size: size of the vocabulary.
        max_seq_len: the largest number of tokens in a text.
        device: initial device of the transformer, which moves with the module around it.
        embedding_dropout: dropout rate of the transformer's input.
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
        """Returns ``[B, L, n_embed]`` for tokens ``[B, L] int64``."""
        return self.transformer(tokens, return_embeddings=True)

    def encode(self, tokens: Any) -> Tensor:
        """Returns ``[B, L, n_embed]`` for tokens ``[B, L] int64``."""
        return self(tokens)


class BERTEmbedder(TransformerEmbedder):
    """Encodes texts as context tokens, with BERT's tokenizer and a transformer that is trained with the model.

    Without the tokenizer, it encodes token numbers, which no script can make of a text.

    Args:
        n_embed: width of a context token.
        n_layer: depth of the transformer.
        vocab_size: size of the vocabulary, which is 30522 for BERT.
        max_seq_len: number of tokens of every text; shorter texts are padded, longer ones truncated.
        device: initial device of the transformer, which moves with the module around it.
        use_tokenizer: whether the input consists of texts; otherwise it consists of token numbers.
        embedding_dropout: dropout rate of the transformer's input.
        tokenizer: name of BERT's tokenizer, or a folder with its ``vocab.txt``, which is read with the first text.
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
        self.reads = "texts" if use_tokenizer else "others"

    def forward(self, tokens: Any) -> Tensor:
        """Returns ``[B, L, n_embed]`` for texts, or for tokens ``[B, L] int64`` if there is no tokenizer."""
        if self.tokenize is not None:
            tokens = self.tokenize(tokens).to(self.transformer.token_emb.weight.device)
        return super().forward(tokens)


class BERTTokenizer:
    """Converts texts to the numbers of BERT's word pieces.

    Args:
        max_length: number of tokens of every text; shorter texts are padded, longer ones truncated.
        source: name of the tokenizer, or a folder with its ``vocab.txt``, which is read with the first text.
    """

    def __init__(self, max_length: int = 77, source: str = "bert-base-uncased") -> None:
        self.max_length, self.source = max_length, source
        self._pieces: Any = None

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Returns ``[B, max_length] int64``.

        Raises:
            ValueError: the transformers package is not installed, or the vocabulary cannot be loaded.
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
        import transformers
    except ImportError as error:
        raise ValueError(
            "BERTEmbedder needs the transformers package for texts; pip install transformers, or set "
            "use_tokenizer: false and use token numbers as input"
        ) from error
    library: Any = transformers  # its stubs lack the name from version 5 on
    try:
        pieces = library.BertTokenizerFast.from_pretrained(source)
        if len(pieces) <= len(
            pieces.all_special_tokens
        ):  # from version 5 on, a folder without a vocabulary is no error
            raise ValueError(f"{source} has special tokens alone")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no BERT vocabulary in '{source}'; without a network, download bert-base-uncased's vocab.txt on another "
            "machine and set 'tokenizer' to its folder"
        ) from error
    return pieces


class SpatialRescaler(nn.Module):
    """Resizes images or label maps; with ``out_channels``, a 1x1 convolution follows.

    Args:
        n_stages: how many times the map is resized.
        method: mode of ``torch.nn.functional.interpolate``.
        multiplier: factor of the size in each stage.
        in_channels: number of channels of the map.
        out_channels: number of output channels of the convolution; ``None`` for no convolution.
        bias: whether the convolution has a bias.

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
        """Returns ``[B, out_channels, h, w]`` for a map ``[B, in_channels, H, W]``."""
        for _ in range(self.n_stages):
            x = F.interpolate(x, scale_factor=self.multiplier, mode=self.method)
        return x if self.channel_mapper is None else self.channel_mapper(x)

    def encode(self, x: Tensor) -> Tensor:
        """Returns ``[B, out_channels, h, w]`` for a map."""
        return self(x)
