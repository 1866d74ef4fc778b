"""An hls4ml project: HLS C++ of the network, compiled with g++ and compared with the model."""

from pquant.export.hls4ml.exporter import HLS4ML

__all__ = ["HLS4ML"]
