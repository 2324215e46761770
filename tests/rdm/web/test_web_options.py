"""The input fields of settings: one for each setting, with its default and help text."""

import pytest

gr = pytest.importorskip("gradio")

from rdm.sampling.settings import AUTOREGRESSION, DEFAULTS, DIFFUSERS, DIFFUSION, OPTIONS, Settings  # noqa: E402
from rdm.web.asking import LEFT_OUT, settings_of  # noqa: E402
from rdm.web.options import fields, values  # noqa: E402


def test_every_setting_of_a_kind_of_model_has_a_field_with_its_help_text() -> None:
    for kind in (DIFFUSION, AUTOREGRESSION, DIFFUSERS):
        found = fields(kind, without=("scale",))
        names = {name for name, known in OPTIONS.items() if kind in known.kinds}
        assert set(found) == names - {"scale", *LEFT_OUT}
        for name, component in found.items():
            assert OPTIONS[name].what in component.info and component.label == name.replace("_", " ")
    assert set(LEFT_OUT) == {"weaker", "weaker_scale", "compile"}


def test_untouched_fields_are_the_default_settings() -> None:
    untouched = {name: component.value for name, component in fields(DIFFUSION).items()}
    assert settings_of(values(untouched)) == Settings()


def test_filled_fields_are_read_as_on_the_command_line() -> None:
    filled = {"interval": "100 900", "tile": "2GB", "height": 32, "sampler": "ddim", "eta": 0.5, "precision": "bf16"}
    expected = Settings(interval=(100, 900), tile="2GB", height=32, sampler="ddim", eta=0.5, precision="bf16")
    assert settings_of(values(filled)) == expected
    assert settings_of(values({"copy_threshold": None})).copy_threshold is None  # an empty field switches it off
    assert settings_of(values({"steps": None, "sampler": ""})) == Settings()
    assert DEFAULTS["copy_threshold"] is not None
    for wrong in ({"interval": "100"}, {"interval": "a b"}, {"tile": "much"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings_of(values(wrong))
