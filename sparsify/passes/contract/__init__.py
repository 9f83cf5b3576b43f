"""Checks of what every pass promises, on small models; use them to test a pass of your own. See `check_pass`."""

from sparsify.passes.contract.cases import CASES as CASES
from sparsify.passes.contract.cases import Case as Case
from sparsify.passes.contract.check import SETUPS as SETUPS
from sparsify.passes.contract.check import check_pass as check_pass
from sparsify.passes.contract.table import Row as Row
from sparsify.passes.contract.table import table as table

__all__ = ["CASES", "SETUPS", "Case", "Row", "check_pass", "table"]
