"""Figures and TensorBoard files: what is drawn and written, read back."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from jaxrl.errors import UserError
from jaxrl.runs import figures, trial_plots
from jaxrl.runs.figures import compact
from jaxrl.runs.plots import Panel, learning_curves, sensitivity
from jaxrl.runs.stats import RISKS, iqm
from jaxrl.runs.trackers import TensorBoard, TrackedRun, aggregates

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    seen: list[Figure] = []
    save = Figure.savefig

    def spy(self, *args, **kwargs):
        seen.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


def curve(points: int, members: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 5e5, points)
    return x, x[:, None] / 1e3 + rng.normal(size=(points, members)) * 50


def colours(path: Path) -> set[str]:
    """The colours in an image, as on paper."""
    image = (imread(path)[..., :3] * 255).round().astype(np.uint8)
    return {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(image.reshape(-1, 3), axis=0)}


def test_curves_show_the_iqm_in_its_interval(tmp_path: Path, drawn: list[Figure]) -> None:
    x, y = curve(30, 40)
    y[7, 3], y[9, :5] = np.nan, np.inf
    path = tmp_path / "plots" / "a.png"
    learning_curves(path, {"pqn": (x, y)}, title="CartPole-v1", ylabel="score")
    (axes,) = drawn[0].axes
    (line,) = axes.lines
    finite = [row[np.isfinite(row)] for row in y]
    np.testing.assert_allclose(line.get_ydata(), [iqm(row) for row in finite])
    interval, quartiles = (c.get_paths()[0].vertices for c in axes.collections)
    for i in (0, 7, 9, 29):
        at = interval[np.isclose(interval[:, 0], x[i]), 1]
        low, high = at.min(), at.max()
        assert low < iqm(finite[i]) < high
        wide = quartiles[np.isclose(quartiles[:, 0], x[i]), 1]
        assert wide.min() < low and high < wide.max()
        assert wide.min() == pytest.approx(np.quantile(finite[i], 0.25))
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert texts == ["pqn, IQM  (n = 40)", "95 % interval", "middle half of members"]
    assert axes.get_title(loc="left") == "CartPole-v1" and axes.get_ylabel() == "score"
    ticks = [t.get_text() for t in axes.get_xticklabels()]
    assert "100k" in ticks and "500k" in ticks
    assert imread(path).shape == (800, 1280, 4)
    assert figures.COLOURS[0] in colours(path)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_many_curves_stay_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    labels = ["_hidden", "a$b_c$", *map(str, range(8))]
    learning_curves(tmp_path / "a.png", {n: curve(25, 3, i) for i, n in enumerate(labels)})
    (axes,) = drawn[0].axes
    texts = [t.get_text().replace("\\", "").strip() for t in axes.get_legend().get_texts()]
    assert texts == [f"{n}  (n = 3)" for n in labels]
    assert axes.get_legend().get_title().get_text() == "IQM and its 95 % interval"
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(labels)
    assert len(axes.collections) == len(labels)  # intervals alone, no quartiles


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_one_member_has_no_band_and_a_gap_where_it_is_nan(
    tmp_path: Path, drawn: list[Figure], shape
) -> None:
    x, y = curve(12, 1)
    y[4:6] = np.nan
    learning_curves(tmp_path / "a.png", {"solo": (x, y.reshape(shape))})
    (axes,) = drawn[0].axes
    assert not axes.collections
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), y[:, 0])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["solo"]


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"all failed": (np.arange(3), np.full((3, 20), np.nan))},
        {"one point": ([10], [[1.0, 2.0, 3.0]])},
        {"constant": ([1, 2], np.ones((2, 4)))},
    ],
)
def test_degenerate_curves_are_drawn(tmp_path: Path, curves) -> None:
    learning_curves(tmp_path / "a.png", curves)
    assert imread(tmp_path / "a.png").shape == (800, 1280, 4)
    if "one point" in curves:
        assert figures.COLOURS[0] in colours(tmp_path / "a.png")


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    x, y = curve(5, 3)
    for wrong in (y.T, y[None], y[:4]):
        with pytest.raises(ValueError, match="curve pqn"):
            learning_curves(tmp_path / "a.png", {"pqn": (x, wrong)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".PDF", b"%PDF")],
)
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    learning_curves(path, {"pqn": curve(5, 3)})
    data = path.read_bytes()
    assert data.startswith(start)
    assert b"/Subtype /Image" not in data and b"<image" not in data  # vectors throughout
    assert b"/Type3" not in data


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"written as \.png, \.pdf, \.svg"):
        learning_curves(tmp_path / name, {"pqn": curve(5, 3)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(20, 500, (0, 500)), (-1500, -150, (-1500, 0)), (480, 500, (480, 500)), (-3, 500, (0, 500))],
)
def test_axes_begin_at_zero_and_have_ticks_at_the_ends(
    low: float, high: float, ends: tuple[float, float], tmp_path: Path, drawn: list[Figure]
) -> None:
    """Zero belongs to the y axis unless the curve would be squeezed."""
    x = np.linspace(1e5, 1e6, 10)
    learning_curves(tmp_path / "a.png", {"pqn": (x, np.linspace(low, high, 10))})
    (axes,) = drawn[0].axes
    bottom, top = axes.get_ylim()
    seen = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    assert set(ends) <= set(seen)
    assert (bottom == 0) == (low == 20) and (top == 0) == (high == -150)
    assert axes.get_xlim()[0] == 0


def test_bands_of_many_curves_are_faint_with_an_edge(tmp_path: Path, drawn: list[Figure]) -> None:
    for count in (3, 4):
        learning_curves(tmp_path / "a.png", {str(i): curve(9, 3, i) for i in range(count)})
    few, many = (figure.axes[0].collections for figure in drawn)
    assert all(band.get_facecolor()[0, 3] > 0.2 and band.get_linewidth()[0] == 0 for band in few)
    assert all(band.get_facecolor()[0, 3] < 0.1 and band.get_linewidth()[0] > 0 for band in many)


def test_the_best_trial_is_dark_on_white(tmp_path: Path, drawn: list[Figure]) -> None:
    y = np.array([3.0, 1.0, 2.0])
    columns = {"agent.lr": [1e-4, 1e-2, 1e-3], "agent.hidden": ["64", "256", "64"]}
    trial_plots.parallel(tmp_path / "a.png", columns, y)
    axes, bar = drawn[0].axes
    lines = {
        line.get_ydata()[-1]: line.get_color() for line in axes.lines if len(line.get_xdata()) == 3
    }
    light = {unit: np.mean(colour[:3]) for unit, colour in lines.items()}
    assert light[1.0] < light[0.5] < light[0.0] < 0.6
    assert bar.get_ylabel() == "objective" and bar.get_ylim() == (1, 3)
    texts = {text.get_text() for text in axes.texts}
    assert {"lr", "hidden", "objective"} <= texts and "agent.lr" not in texts


def test_axes_of_trials_have_ticks_at_round_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    """Few different numbers have a tick each; the objective's axis is linear, as its colours."""
    rng = np.random.default_rng(0)
    lrs = (10 ** np.linspace(-5.1, -0.9, 20)).tolist()
    columns: dict[str, list[Any]] = {"epochs": [1, 2, 4, 2] * 5, "lr": lrs}
    y = np.append(rng.uniform(10, 490, 18), [2, 500])
    trial_plots.parallel(tmp_path / "a.png", columns, y, "return", "PQN on x")
    trial_plots.slices(tmp_path / "b.png", columns, y, "return", "PQN on x")
    axes = drawn[0].axes[0]
    texts: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for text in axes.texts:
        x, height = text.get_position()
        if 0 <= height <= 1:
            texts[int(x)].append(text.get_text())
    assert texts[0] == ["1", "2", "4"]
    assert texts[1] == ["1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert texts[2] == ["100", "200", "300", "400", "500"]
    assert "PQN on x: 20 trials, darker for a higher return" in [x.get_text() for x in axes.texts]
    panels = drawn[1].axes
    assert panels[0].get_xticks().tolist() == [1, 2, 4] and panels[1].get_xscale() == "log"
    assert panels[0].get_title(loc="left") == "PQN on x: 20 trials, later ones darker"


def test_histograms_say_what_is_counted(tmp_path: Path, drawn: list[Figure]) -> None:
    panels = {"return": (np.arange(6), "episodes"), "action": (np.zeros((4, 2)), "steps")}
    trial_plots.histograms(tmp_path / "a.svg", panels, "data")
    labels = [axes.get_ylabel() for axes in drawn[0].axes]
    assert labels == ["number of episodes", "number of steps"]


def cells(*levels: float) -> list[list[np.ndarray]]:
    """Twenty scores around each level, in two strata."""
    rng = np.random.default_rng(0)
    return [[rng.normal(level, 1, 12), rng.normal(level, 1, 8)] for level in levels]


def test_sensitivity_shows_the_iqm_in_order(tmp_path: Path, drawn: list[Figure]) -> None:
    values, found = [1e-2, 1e-4, 1e-3], cells(5, 1, 3)
    several = {f"line {i}": cells(i, i, i) for i in range(5)}
    choice = Panel("kind", [[64, 64], "gru", True], several)
    sensitivity(tmp_path / "a.png", [Panel("lr", values, {"": found}), choice], title="walk")
    left, right = drawn[0].axes
    (line,) = left.lines
    np.testing.assert_array_equal(line.get_xdata(), sorted(values))
    expected = np.array([iqm(np.concatenate(found[i])) for i in (1, 2, 0)])
    np.testing.assert_allclose(line.get_ydata(), expected)
    band = left.collections[0].get_paths()[0].vertices
    for x, middle in zip(sorted(values), expected, strict=True):
        low, high = np.sort(band[np.isclose(band[:, 0], x), 1])[[0, -1]]
        assert middle - 1.5 < low < middle < high < middle + 1.5
    ticks = {
        t.get_text(): x for t, x in zip(left.get_xticklabels(), left.get_xticks(), strict=True)
    }
    assert ticks == {"0.0001": 1e-4, "0.001": 1e-3, "0.01": 1e-2}
    assert left.get_legend() is None and left.get_title(loc="left") == "walk"
    assert [t.get_text() for t in right.get_xticklabels()] == ["64x64", "gru", "True"]
    assert [t.get_text() for t in right.get_legend().get_texts()] == list(several)
    assert left.get_ylabel() == "return" and right.get_ylabel() == ""


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1e-4, 3e-4, 1e-3], "log"),
        ([32, 64, 128], "log"),
        ([16, 32, 48], "linear"),
        ([0, 0.5, 1], "linear"),
        ([0.9, 0.99], "linear"),
        ([1e-5, 1e-3], "log"),
        ([-1, 1, 10], "linear"),
    ],
)
def test_sensitivity_chooses_its_axis(
    values: list[float], scale: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    sensitivity(tmp_path / "a.png", [Panel("x", values, {"": cells(*values)})])
    assert drawn[0].axes[0].get_xscale() == scale


def test_sensitivity_of_few_scores(tmp_path: Path, drawn: list[Figure]) -> None:
    """A gap without any; strata of one score each are resampled together."""
    one = [np.array([float(i)]) for i in range(9)]
    rows = [[], one, [np.array([np.nan]), np.array([2.0, 2.0])]]
    sensitivity(tmp_path / "a.png", [Panel("x", [1, 2, 3], {"a": rows})] * 4)
    assert len(drawn[0].axes) == 4 and drawn[0].get_size_inches()[1] == 8  # in two rows
    np.testing.assert_array_equal(drawn[0].axes[0].lines[0].get_ydata(), [np.nan, 4, 2])
    band = np.concatenate([p.vertices for p in drawn[0].axes[0].collections[0].get_paths()])
    assert np.ptp(band[np.isclose(band[:, 0], 2), 1]) > 2


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    code = f"""
import sys
import jaxrl.runs.plots
assert "matplotlib" not in sys.modules  # importing it waits until something is drawn
jaxrl.runs.plots.learning_curves({str(tmp_path / "a.png")!r}, {{"a": ([1, 2], [1, 2])}})
assert "matplotlib.pyplot" not in sys.modules and "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e5, "100k"),
        (1e6, "1M"),
        (1500, "1.5k"),
        (2.5e9, "2.5B"),
        (-250000, "-250k"),
        (999, "999"),
        (0, "0"),
        (0.25, "0.25"),
        (999999.9999999999, "1M"),
    ],
)
def test_ticks(value: float, text: str) -> None:
    assert compact(value) == text


# --- TensorBoard ---------------------------------------------------------------------------------


def events(folder: Path) -> list:
    """All events of the files in `folder`, which are records of length, crc, data, crc."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def tracked(folder: Path, resume_at: int | None = None, **hyperparameters: Any) -> TensorBoard:
    return TensorBoard(TrackedRun("run", folder, hyperparameters, resume_at))


def test_aggregates_have_one_name_per_metric_and_quantiles_of_returns() -> None:
    risks = {name: np.arange(101.0) for name in RISKS}
    found = aggregates({"return": np.arange(101.0), "loss": np.float32(0.5)} | risks)
    quantiles = [f"return/{name}" for name in ("min", "median", "max")]
    assert set(found) == {*quantiles, "loss", "cvar_0.1"}  # whatever the population
    assert [found[name] for name in quantiles] == [0, 50, 100]
    assert found["loss"] == 0.5 and found["cvar_0.1"] == 50
    found = aggregates({"return": [np.nan, 3.0, np.inf], "loss": [np.nan]})
    assert found == dict.fromkeys(quantiles, 3)


def test_tensorboard_has_points_hyperparameters_and_results(tmp_path: Path) -> None:
    board = tracked(tmp_path, lr=1e-3, agent="pqn", normalise=True)
    board.log(1, {"return/median": 1.0})
    board.close([{"lr": 0.5, "return/iqm": 7.25}])
    found = [value for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    tags = {value.tag: value for value in found}
    start = tags["_hparams_/session_start_info"].metadata.plugin_data
    assert start.plugin_name == "hparams"
    assert all(name in start.content for name in (b"lr", b"agent", b"pqn", b"normalise"))
    metrics = tags["_hparams_/experiment"].metadata.plugin_data.content
    assert b"return/median" in metrics and tags["return/median"].simple_value == 1
    (text,) = tags["results/text_summary"].tensor.string_val
    assert text.decode() == "| lr | return/iqm |\n| --- | --- |\n| 0.5 | 7.25 |"


def test_tensorboard_goes_on_where_a_run_is_resumed(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import SessionLog

    for name, starts in (("new", []), ("resumed", [7])):
        board = tracked(tmp_path / name, resume_at=starts[0] if starts else None)
        board.log(7, {"x": 2})
        board.close([])
        logs = [(e.session_log.status, e.step) for e in events(tmp_path / name / "tensorboard")]
        assert [step for kind, step in logs if kind == SessionLog.START] == starts
