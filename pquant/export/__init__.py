"""Exporters of a finalized model: one module per target."""

from pquant.export.exporter import Exporter, NoExport
from pquant.export.hls4ml import HLS4ML
from pquant.export.onnx import ONNX
from pquant.export.rtl import RTL
from pquant.export.weights import load_weights, save_model

__all__ = ["HLS4ML", "ONNX", "RTL", "Exporter", "NoExport", "load_weights", "save_model"]
