"""What a run measures and shows: the headline, latency against the dense file, and ``report.html``."""

from sparsify.reports.document import write_report as write_report
from sparsify.reports.headline import Headline as Headline
from sparsify.reports.headline import headline as headline
from sparsify.reports.individual import individual_row as individual_row
from sparsify.reports.integers import int8_sentence as int8_sentence
from sparsify.reports.latency import Latency as Latency
from sparsify.reports.latency import compare as compare
from sparsify.reports.latency import parse_shapes as parse_shapes
from sparsify.reports.measures import calibrated as calibrated
from sparsify.reports.measures import covered as covered
from sparsify.reports.measures import layers as layers
from sparsify.reports.measures import paired as paired
from sparsify.reports.measures import pass_rows as pass_rows
from sparsify.reports.measures import sizes as sizes
from sparsify.reports.measures import task_quality as task_quality
from sparsify.reports.savings import savings_line as savings_line
from sparsify.reports.spikes import spikes_row as spikes_row
from sparsify.reports.verdict import verdict as verdict
