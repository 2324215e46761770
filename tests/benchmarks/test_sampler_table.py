"""The cases of the comparison of samplers, and its table."""

from benchmarks.samplers import REFERENCE, ROUNDS, USUAL, cases, table


def test_the_reference_comes_first_and_no_case_twice() -> None:
    found = list(cases(["ddim", "unipc"], [10, 100, 250]))
    usual = [(*USUAL, number) for number in range(ROUNDS)]
    rest = [("ddim", 10, 0), ("unipc", 10, 0), ("unipc", 100, 0), ("unipc", 250, 0)]
    assert found == [(*REFERENCE, 0), *usual, *rest]


def test_the_table_has_a_row_a_sampler_and_a_column_for_each_number_of_steps() -> None:
    def line(sampler: str, steps: int, frechet: float, seeds: int = 0) -> dict[str, object]:
        return {"sampler": sampler, "steps": steps, "seeds": seeds, "frechet": frechet, "off_reference": None}

    found = [line("ddim", 100, 0.25), line("ddim", 100, 9.0, seeds=1), line("unipc", 10, 0.125)]
    rows = table(found, "frechet", "off_reference").splitlines()
    assert rows[0] == "| frechet / off_reference | 10 | 100 |" and rows[1] == "|---|---|---|"
    assert rows[2:] == ["| ddim |  | 0.25 / - |", "| unipc | 0.125 / - |  |"]
