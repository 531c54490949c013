"""Experiments that settle the papers' claims: what is claimed, and the commands that test it.

Each record has a small form, for a machine with a few cores, and the full form with the paper's
sizes. Commands contain seeds and data; those that make datasets or train bases come first. They
write below `runs/` and `data/`, and a run that is finished is not repeated. `jaxrl report FOLDER`
compares the runs of a folder. Verdicts are on the agents' pages in docs/agents.

Importing this package does not import JAX.
"""

from jaxrl.experiments.reproductions.offline import CDSA, IQL, OFQL, ONLINE, PGD, RAVL, SELECTION
from jaxrl.experiments.reproductions.online import MDPO, PQN
from jaxrl.experiments.reproductions.record import Reproduction
from jaxrl.experiments.reproductions.tokens import TOKENS

__all__ = ["REPRODUCTIONS", "Reproduction"]

REPRODUCTIONS: dict[str, Reproduction] = {
    one.name: one
    for one in (*PQN, *MDPO, *RAVL, *CDSA, *PGD, *OFQL, *IQL, *ONLINE, *TOKENS, *SELECTION)
}
