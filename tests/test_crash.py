"""Kills and power failures at every file operation; first, what the images of `crash` hold."""

from __future__ import annotations

import os
from pathlib import Path

import crash

from jaxrl.runs import files


def held(image: crash.Image) -> dict[str, str] | None:
    """The files of an image."""
    found = sorted(x for x in image.path.rglob("*") if x.is_file())
    at = lambda file: str(file.relative_to(image.path))
    return {at(x): x.read_text() for x in found} if image.path.exists() else None


def test_images_of_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def work() -> None:
        folder.mkdir()
        (folder / "a").write_text("four")
        (folder / "a").rename(folder / "b")
        (folder / "b").unlink()

    found = crash.images(folder, tmp_path / "images", work, ("kill", "half"))
    kills = [held(image) for image in found if image.kind == "kill"]
    assert kills == [None, {}, {"a": "four"}, {"b": "four"}]  # the end is empty once more
    assert [held(image) for image in found if image.kind == "half"] == [{"a": "fo"}]


def test_images_of_a_power_failure(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def work() -> None:
        folder.mkdir()
        files.sync_folder(tmp_path)
        with (folder / "a").open("w") as file:
            file.write("four")
            file.flush()
            os.fsync(file.fileno())
        (folder / "b").write_text("never synced")
        files.sync_folder(folder)
        (folder / "a").rename(folder / "c")

    found = crash.images(folder, tmp_path / "images", work, ("torn", "lost"))
    end = {image.kind: held(image) for image in found}
    assert end == {"torn": {"b": "", "c": "four"}, "lost": {"a": "four", "b": ""}}
