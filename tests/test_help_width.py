"""Help fits the terminal: fixed pages are narrow, others are filled anew."""

import pytest

from jaxrl.experiments import cli
from jaxrl.experiments.commands import PAGES, command_help
from jaxrl.experiments.data import cli as data_cli
from jaxrl.experiments.streams import FILL, filled


@pytest.mark.parametrize("page", [cli.USAGE, data_cli.USAGE], ids=["jaxrl", "data"])
def test_fixed_pages_fit_80_columns(page: str) -> None:
    assert max(map(len, page.splitlines())) < 80


@pytest.mark.parametrize("width", [80, 60])
def test_pages_are_filled_anew(width: int) -> None:
    for command in PAGES:
        page = command_help(command)
        narrow = filled(page, width)
        assert narrow.split() == page.split()
        assert max(map(len, narrow.splitlines())) <= width
        assert filled(page, FILL) == filled(page, None) == page


def test_paragraphs_items_and_options_stay_apart() -> None:
    long = "word " * 19
    text = "\n".join(
        [
            long + "end",  # 98 columns: "continues" did not fit
            "continues here.",
            f"- {long[:-5]}end",
            "  continues the item.",
            "- another item",
            f"      {long[:-10]}end",
            "  --option",
        ]
    )
    lines = filled(text, 60).splitlines()
    assert "continues here." in lines[1] and not lines[1].startswith(" ")
    items = [line for line in lines if line.startswith("- ")]
    assert len(items) == 2 and "  --option" in lines
    (second,) = [line for line in lines if "continues the item." in line]
    assert second.startswith("  ") and len(second) <= 60
