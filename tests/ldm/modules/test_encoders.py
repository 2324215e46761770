"""Encoders of classes, texts and label maps against the original's numbers."""

import pytest
import torch
from golden_cases import load_golden

from ldm.modules.encoders.modules import BERTEmbedder, ClassEmbedder, SpatialRescaler, TransformerEmbedder


@torch.no_grad()
def test_class_embedder_matches_original() -> None:
    case = load_golden("class_embedder")
    label = case.part("in")["label"]
    embedder = case.build()
    case.check("c", embedder({"class_label": label}))
    assert torch.equal(embedder({"other": label}, key="other"), embedder.encode({"class_label": label}))
    assert ClassEmbedder(4).key == "class" and ClassEmbedder(4).embedding.num_embeddings == 1000


@torch.no_grad()
def test_bert_embedder_matches_original() -> None:
    case = load_golden("bert_embedder")
    tokens, embedder = case.part("in")["tokens"], case.build()
    case.check("z", embedder.encode(tokens))
    case.check("logits", embedder.transformer(tokens))
    with pytest.raises(ValueError, match="13 tokens.*max_seq_len=12"):
        embedder(tokens[:, :1].expand(2, 13))
    plain = TransformerEmbedder(32, 1, 40, 12)
    plain.load_state_dict(case.weights)
    assert torch.equal(plain.eval()(tokens), embedder(tokens))


def test_bert_embedder_is_built_without_a_vocabulary_and_says_what_it_lacks(tmp_path) -> None:
    embedder = BERTEmbedder(16, 1, tokenizer=str(tmp_path))
    assert embedder.transformer.token_emb.num_embeddings == 30522 and embedder.transformer.max_seq_len == 77
    with pytest.raises(ValueError, match="pip install transformers|no BERT vocabulary in"):
        embedder(["a cat"])


@torch.no_grad()
def test_spatial_rescaler_matches_original() -> None:
    case = load_golden("spatial_rescaler")
    x = case.part("in")["x"]
    case.check("y", case.build().encode(x))
    assert SpatialRescaler(n_stages=0)(x) is x
    with pytest.raises(ValueError, match="n_stages=1, method=linar; expected 0 or more, one of"):
        SpatialRescaler(method="linar")
