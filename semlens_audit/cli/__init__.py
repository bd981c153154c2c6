"""The command line: parses, calls plain functions, prints, exits. The only place that exits.

Imports of anything heavier than the parser happen inside the verbs, so that ``--help`` is instant and a verdict is re-decided
from the cache without torch. The order of the imports below is the order in which ``--help`` lists the verbs.
"""

from __future__ import annotations

import os
import sys

from semlens_audit.cli import write  # isort: skip
from semlens_audit.cli import layers  # isort: skip
from semlens_audit.cli import audit  # isort: skip
from semlens_audit.cli import gate  # isort: skip
from semlens_audit.cli import change  # isort: skip
from semlens_audit.cli import export  # isort: skip
from semlens_audit.cli import locking  # isort: skip
from semlens_audit.cli import signing  # isort: skip
from semlens_audit.cli import trust  # isort: skip
from semlens_audit.cli import explore  # isort: skip
from semlens_audit.cli import labelling  # isort: skip
from semlens_audit.cli import describing  # isort: skip
from semlens_audit.cli import comparing  # isort: skip
from semlens_audit.cli import surprising  # isort: skip
from semlens_audit.cli import autoencoders  # isort: skip
from semlens_audit.cli import splitting  # isort: skip
from semlens_audit.cli import store  # isort: skip
from semlens_audit.cli.shell import app
from semlens_audit.errors import ExitCode

__all__ = [
    "app", "audit", "autoencoders", "change", "comparing", "describing", "explore", "export", "gate", "labelling", "layers", "locking",
    "main", "signing", "splitting", "store", "surprising", "trust", "write",
]  # fmt: skip


def main() -> None:
    """Entry point of the console script; exits with an `ExitCode`."""
    # threads of torch that wait by spinning slow a shared machine down by an order of magnitude: let them sleep
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="semlens-audit")
    except SystemExit as leaving:
        # an interrupt before a verb began: typer exits with 130 and says nothing
        raise leaving from None
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))
