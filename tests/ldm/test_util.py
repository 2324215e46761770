"""Objects from configs, atomic files, one-line errors."""

from pathlib import Path

import pytest
import torch

from ldm.files import atomic_path
from ldm.util import check_params, evenly, get_obj_from_str, instantiate_from_config, nearest


def test_nearest_names_the_closest_word_or_nothing() -> None:
    assert nearest("embed_dims", ["n_embed", "embed_dim"]) == "; did you mean 'embed_dim'?"
    assert nearest("zzz", ["n_embed", "embed_dim"]) == ""


def test_numbers_are_evenly_spread() -> None:
    assert evenly(40, 3) == [0, 19, 39] and evenly(3, 5) == [0, 0, 1, 1, 2] and evenly(5, 1) == [0] and not evenly(5, 0)
    for total in (7, 154, 695):
        assert evenly(total, total) == list(range(total))
        steps = torch.tensor(evenly(total, 6)).diff()
        assert evenly(total, 6)[-1] == total - 1 and steps.max() - steps.min() <= 1


@pytest.mark.parametrize("target", ["pathlib.Path.mkdir", "os.mkdir", "ldmx.evil", "torch.load", "builtins.eval"])
def test_foreign_targets_are_refused_and_not_run(target: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(ValueError, match="not trusted.*ldm, rdm, main"):
        instantiate_from_config({"target": target, "params": {"path": str(made)}})
    assert not made.exists()


def test_functions_of_trusted_packages_are_refused_and_not_run(tmp_path: Path) -> None:
    """One of ours would write any file with any content."""
    params = {"file": str(tmp_path / "made"), "config": {"a": 1}}
    with pytest.raises(ValueError, match="'ldm.config.write_config'.*function.*--trust ldm.config$"):
        instantiate_from_config({"target": "ldm.config.write_config", "params": params})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "ldm.files.os.mkdir",
            "there is no module 'ldm.files.os'",
        ),  # no way out through a trusted module's imports
        ("ldm.files.os", "'ldm.files.os' is a module, expected a class of ldm's own"),
        ("ldm.files.Path", "'ldm.files.Path' is a class of pathlib, expected a class of ldm's own"),
        ("torch.nn.functional.relu", "is a function, expected a class of torch's own; .*--trust torch.nn.functional$"),
        ("ldm.utils.nearest", "there is no module 'ldm.utils'"),
        ("ldm.util.nearst", r"no such name in ldm.util; did you mean 'nearest'\?"),
    ],
)
def test_targets_that_name_nothing(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_obj_from_str(target)


def test_instantiate_builds_with_extra_arguments_winning() -> None:
    config = {"target": "torch.nn.Linear", "params": {"in_features": 2, "out_features": 3, "bias": True}}
    layer = instantiate_from_config(config, bias=False)
    assert isinstance(layer, torch.nn.Linear)
    assert (layer.in_features, layer.out_features, layer.bias) == (2, 3, None)
    assert instantiate_from_config({"target": "torch.nn.SiLU", "params": None})(torch.zeros(1)) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"params": {}}, "expected a mapping with a 'target' key, got {'params': {}}"),
        ({"target": "torch.nn.SiLU", "param": {}}, "unknown key 'param'; did you mean 'params'?"),
        (
            {"target": "torch.nn.Linear", "params": {"in_feature": 2, "out_features": 3}},
            "torch.nn.Linear has no parameter 'in_feature'; did you mean 'in_features'?",
        ),
        (
            {"target": "torch.nn.Linear", "params": {"in_features": 2}},
            "torch.nn.Linear needs the parameter 'out_features', got in_features",
        ),
    ],
)
def test_wrong_configs_are_named(config: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        instantiate_from_config(config)
    assert message in str(caught.value)


def test_check_params_lists_what_is_known_where_nothing_is_near() -> None:
    def build(first: int, *, second: int = 0) -> None: ...

    check_params("build", build, {"first": 1})
    with pytest.raises(ValueError, match="build.*'xyz'.*first, second"):
        check_params("build", build, {"first": 1, "xyz": 2})


def test_atomic_path_leaves_the_complete_file_or_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    with atomic_path(file) as temporary:
        temporary.write_text("one")
        assert not file.exists()
    assert file.read_text() == "one"
    with pytest.raises(RuntimeError, match="stop"), atomic_path(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert file.read_text() == "one"
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target": 5}, "got the target 5, expected a dotted name"),
        ({"target": "torch.nn.Linear", "params": "abc"}, "torch.nn.Linear: params: got 'abc', expected a mapping"),
        (
            {"target": "ldm.data.DataModule", "params": {"batch_size": "abc"}},
            "ldm.data.DataModule: got batch_size='abc', expected int",
        ),
        (
            {"target": "ldm.data.DataModule", "params": {"batch_size": [1]}},
            "DataModule: TypeError ('<' not supported between instances of 'list' and 'int'); correct its params",
        ),
    ],
)
def test_values_of_a_wrong_type_are_named(config: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        instantiate_from_config(config)
    assert message in str(caught.value)
