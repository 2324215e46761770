"""CompVis' reshapers of neighbours against the original's numbers."""

from golden_cases import load_golden

from rdm.modules.encoders.nn_encoders import CLIPEmbeddingReshaper, IdentityEncoder, NNEmbeddingReshaper, NNReshaper


def test_reshapers_match_original() -> None:
    case = load_golden("clip_reshaper")
    given, expected = case.part("in"), case.part("out")
    got = {"y": CLIPEmbeddingReshaper()(given["x"]), "y64": CLIPEmbeddingReshaper()(given["x64"])}
    got |= {"identity_encode": IdentityEncoder().encode(given["x"])}
    got |= {"identity_encode_nofloat": IdentityEncoder(to_float32=False).encode(given["x"])}
    got |= {"nn_reshaper": NNReshaper()(given["img"]), "nn_embedding_reshaper": NNEmbeddingReshaper()(given["x"])}
    assert set(got) == set(expected)
    for key, value in got.items():
        case.check(key, value)
