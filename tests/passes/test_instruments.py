"""Recording what is applied, whoever applies it."""

from __future__ import annotations

from sparsify.passes import Pipeline, recording
from tests.cases import CASES


def test_a_block_records_its_passes_in_order_and_nothing_else():
    program = CASES[0].trace()
    Pipeline.parse("attach-calibration-head")(program)
    with recording() as outer:
        masked = Pipeline.parse("insert-masks{density=0.5} | attach-calibration-head")(program)
        with recording() as inner:
            Pipeline.parse("fold-masks")(masked)
    Pipeline.parse("eliminate-dead-code")(program)
    assert [str(step) for step, _ in outer] == ["insert-masks{density=0.5}", "attach-calibration-head"]
    assert [log.name for _, log in inner] == ["fold-masks"]
    assert outer[0][1].changed == list(masked.masks())
