"""What is particular to TensorFlow Lite Micro: decoded weights, sources, its report."""
