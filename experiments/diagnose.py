"""Verdicts of `jaxrl report` about offline runs that over- or underfit, with the remedy."""

from __future__ import annotations

import numpy as np

from jaxrl import diagnosis
from jaxrl.experiments.console import plural
from jaxrl.experiments.run_folders import count_members
from jaxrl.runs import metrics, records


def lines(run: records.RunDir, name: str) -> list[str]:
    """One line per verdict about the members of an offline run, with the remedy; [] if the run has
    no Q-values, too few evaluations, members that are all well, or steps in the environment, whose
    rows change Q by themselves."""
    config = run.config()["config"]
    history = records.read_metrics(run)
    if "data" not in config or not {"q", "td_error"} <= set(history):
        return []
    last = history["stage"] == history["stage"][-1]
    if np.any(history["env_steps"][last]):
        return []
    columns = {key: x[last] for key, x in history.items() if key != "stage"}
    by_member = metrics.by_chunk(columns, count_members(run.path))
    if len(by_member["q"]) < 3:
        return []
    found = [
        diagnosis.diagnose({key: x[:, i] for key, x in by_member.items()})
        for i in range(by_member["q"].shape[1])
    ]
    told = []
    for verdict, remedy in diagnosis.REMEDIES.items():
        those = [each for each in found if each.verdict == verdict]
        if those:
            at = int(np.median([by_member["update"][each.peak, 0] for each in those]))
            lost = np.median([each.fall for each in those])
            why = f"Q peaks at update {at:,} and falls by {lost:.0%} of its range"
            if verdict == "underfitting":
                share = np.median([each.unexplained for each in those])
                why = f"the TD error stays at {share:.2f} standard deviations of Q"
            gaps = np.array([each.gap for each in those])
            gap = f", held-out TD error {np.median(gaps):.2f} times that of training rows"
            told.append(
                f"{name}: {verdict} in {len(those)} of {plural(len(found), 'member')} ({why}"
                f"{gap if np.isfinite(gaps).all() else ''}): {remedy}"
            )
    return told
