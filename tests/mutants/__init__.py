"""One-line mutations of the program, a module for each room of it; see table.py."""

from tests.mutants.evaluation import EVALUATION
from tests.mutants.formats import ADAPTERS, FORMATS
from tests.mutants.generate import GENERATE
from tests.mutants.model import KERNELS, MODEL
from tests.mutants.pyx import COMMON, LAYERS, PRODUCTS, STEPS
from tests.mutants.server import SERVER
from tests.mutants.table import Mutant, changed, misplaced
from tests.mutants.text import TEXT
from tests.mutants.train import SEEN, STATES, TRAIN

MUTANTS = (
    *TRAIN,
    *STATES,
    *SEEN,
    *MODEL,
    *KERNELS,
    *FORMATS,
    *ADAPTERS,
    *GENERATE,
    *TEXT,
    *EVALUATION,
    *SERVER,
    *LAYERS,
    *PRODUCTS,
    *STEPS,
    *COMMON,
)

__all__ = ["MUTANTS", "Mutant", "changed", "misplaced"]
