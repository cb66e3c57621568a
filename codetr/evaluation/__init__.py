"""Postprocessing of predictions to detections, and their evaluation."""

from codetr.evaluation.coco import CocoEvaluator
from codetr.evaluation.lvis import lvis_evaluator
from codetr.evaluation.postprocess import Postprocess
