"""Detections from predictions, and how good they are."""

from codetr.evaluation.coco import CocoEvaluator
from codetr.evaluation.lvis import lvis_evaluator
from codetr.evaluation.postprocess import Postprocess
