"""Names of the inputs of a run and of its members that are not results of stages."""

DATA = "data"  # the dataset
VALIDATION = "validation"  # its rows that are held out from training
BASE = "base"  # the trained policy of an earlier run
REUSED = "reused"  # finished states of stages of an earlier run
SOURCE = "source"  # in evaluations, the state of the stage's source
WINDOWS = "windows"  # of environments of the host
SHAPES = "shapes"  # stands for `WINDOWS` where only shapes count

RESERVED = (DATA, VALIDATION, BASE, REUSED, SOURCE, WINDOWS, SHAPES)
