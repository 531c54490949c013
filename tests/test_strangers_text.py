"""Texts from files of others: on terminals and in spreadsheets."""

from __future__ import annotations

import csv
import io
import socket
from pathlib import Path

import jax
import pytest
from rich.table import Table

from jaxrl.errors import UserError
from jaxrl.experiments import cli, console
from jaxrl.experiments.progress import Display
from jaxrl.experiments.streams import printable
from jaxrl.runs import files, processes, records

BAD = "a\x1b]52;c;AAAA\x07\x1b[2J\x9b\u202eb\udcff"


def assert_harmless(text: str) -> None:
    assert all(x.isprintable() or x == "\n" for x in text), repr(text)


def test_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = Table(BAD, "n")
    table.add_row(BAD, "1.25")
    console.print_line(BAD)
    console.print_line(table)
    Display(1).say(BAD)
    assert cli.main(["eval", str(tmp_path / BAD)]) == 2
    told = capsys.readouterr()
    assert_harmless(told.out + told.err)
    assert "1.25" in told.out and told.err.startswith("jaxrl: ")
    assert printable("95 % é π\n\t[x]") == "95 % é π\n\t[x]"


TEXTS = ["=1+1", "+1+1", "-1x2", "@x", "\t=1", "'=1", "plain", "64x64", "-1e-4", "+5", "-inf", ""]
SAFE = [
    "'=1+1",
    "'+1+1",
    "'-1x2",
    "'@x",
    "'\t=1",
    "'=1",
    "plain",
    "64x64",
    "-1e-4",
    "+5",
    "-inf",
    "",
]


def test_cells_are_no_formulas(tmp_path: Path) -> None:
    rows = list(csv.reader(io.StringIO(files.csv_bytes(["=x"], [[x] for x in TEXTS]).decode())))
    assert [row[0] if row else "" for row in rows] == ["'=x", *SAFE]
    assert [files.csv_text(cell) for cell in SAFE] == [x.removeprefix("'") for x in TEXTS]
    console.write_csv(tmp_path / "x.csv", [{"=a": -1.5, "b": "=b"}, {"b": True, "c": (4, -8)}])
    assert (tmp_path / "x.csv").read_text() == "'=a,b,c\n-1.5,'=b,\n,true,4x-8\n"


def test_members_keep_their_values(tmp_path: Path) -> None:
    run = records.RunDir(tmp_path)
    run.write_members({"id": [0, 1], "=x": ["=1", "b"], "lr": [-1e-4, None]})
    assert (tmp_path / "members.csv").read_text().splitlines()[1] == "0,'=1,-0.0001"
    assert run.members()["=x"].tolist() == ["=1", "b"] and run.members()["lr"][0] == -1e-4


def test_address_of_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        for address, told in {
            f"127.0.0.1:{used.getsockname()[1]}": "in use",
            "192.0.2.1:1234": "cannot listen",  # a documentation address, of no machine
            "127.0.0.1": "HOST:PORT",
            ":1234": "HOST:PORT",
            "127.0.0.1:0": "HOST:PORT",
        }.items():
            with pytest.raises(UserError, match=told):
                processes.join(address, 2, 0)
    given = {}
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *who, **how: given.update(how))
    address = f"127.0.0.1:{free_port()}"
    processes._joined.__wrapped__(address, 2, 0, 10)
    assert given["coordinator_bind_address"] == address


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
