"""A model as vectors: ``Layout`` turns a module's state into contiguous 1-D tensors and back, by name, never by
position.

Three vectors hold a model: its *parameters*, its *float buffers* (BatchNorm statistics), its *integer buffers*
(counters). Algorithms see parameters only. Named tensors appear at the edges: user code and files. What is frozen is in
no vector: each side has it from the model's factory.
"""

from roundelay.layout.bound import ALIGNMENT, Bound
from roundelay.layout.layout import BATCH_NORM, FLOATS, HALVES, Layout
from roundelay.layout.specs import Kind, Scope, Spec, Vectors

__all__ = ["ALIGNMENT", "BATCH_NORM", "FLOATS", "HALVES", "Bound", "Kind", "Layout", "Scope", "Spec", "Vectors"]
