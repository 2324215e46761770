import re

import pytest
from documents import read

from rdm.web.limits import Limits


def test_a_number_within_its_limit_is_accepted_and_one_above_it_is_refused() -> None:
    limits = Limits(images=4, steps=50)
    limits.check(images=4, steps=None)
    with pytest.raises(ValueError, match="5 images in a request, expected at most 4"):
        limits.check(images=5, steps=50)


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_a_limit_is_a_whole_number_of_at_least_1(value: object) -> None:
    with pytest.raises(ValueError, match="queue="):
        Limits(queue=value)  # type: ignore[arg-type]


def test_the_docs_state_every_limit_with_its_default() -> None:
    stated = dict(re.findall(r"^\| `--most_(\w+)` \|[^|]*\| ([\d,]+) \|$", read("docs/web.md"), re.MULTILINE))
    assert {name: int(number.replace(",", "")) for name, number in stated.items()} == vars(Limits())
