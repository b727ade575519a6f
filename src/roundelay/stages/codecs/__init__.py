"""Codecs: one float vector to bytes and back, as pure functions of the vector and a keyed generator.

A job file finds them by the names in ``__all__``, whatever their case and underscores; ``Codec`` is the form, for one
of your own. An empty vector is no bytes in every codec. Numbers are little-endian, bits fill each byte from its lowest.
All arithmetic whose order matters is numpy's, which has one thread: torch's number of threads changes nothing.
"""

from roundelay.stages.codecs.blocks import FP8, Int8
from roundelay.stages.codecs.casts import BF16, FP16, FP32
from roundelay.stages.codecs.protocol import Codec as Codec
from roundelay.stages.codecs.qsgd import QSGD
from roundelay.stages.codecs.rotations import DRIVE, EDEN
from roundelay.stages.codecs.signs import Sign
from roundelay.stages.codecs.sparse import STC, RandK, TopK
from roundelay.stages.codecs.ternary import TernGrad

__all__ = ["BF16", "DRIVE", "EDEN", "FP8", "FP16", "FP32", "QSGD", "STC", "Int8", "RandK", "Sign", "TernGrad", "TopK"]
