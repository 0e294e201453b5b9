"""A policy outside of training: as an ONNX graph, and as a server that others ask over the network."""
