"""An ONNX file of the network: with standard operators, or in the dialect of QONNX, FINN or hls4ml."""

from pquant.export.onnx.exporter import ONNX

__all__ = ["ONNX"]
