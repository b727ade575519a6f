"""Objects in photographs: Pascal VOC and COCO, a folder for each device."""

from roundelay.data.detection.album import Album as Album
from roundelay.data.detection.album import DetectionExamples as DetectionExamples
from roundelay.data.detection.coco import coco
from roundelay.data.detection.voc import voc

__all__ = ["coco", "voc"]
"""What a job file can name; the rest is for Python."""
