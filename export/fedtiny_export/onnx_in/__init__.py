"""ONNX files to float graphs."""
