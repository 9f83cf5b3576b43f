"""Patterns: which positions of a weight may be active together."""

from sparsify.parts.patterns.base import Balanced as Balanced
from sparsify.parts.patterns.base import Pattern as Pattern
from sparsify.parts.patterns.base import Shape as Shape
from sparsify.parts.patterns.fan_in import FanIn as FanIn
from sparsify.parts.patterns.grouped import Grouped as Grouped
from sparsify.parts.patterns.plain import NM as NM
from sparsify.parts.patterns.plain import Block as Block
from sparsify.parts.patterns.plain import Unstructured as Unstructured
from sparsify.parts.patterns.spelling import PATTERNS as PATTERNS
from sparsify.parts.patterns.spelling import Spelling as Spelling
from sparsify.parts.patterns.spelling import parse_pattern as parse_pattern
from sparsify.parts.patterns.spelling import spellings as spellings
