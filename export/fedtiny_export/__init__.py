"""fedtiny's exporter: any supported network in, microcontroller artifacts and their memory account out.

This package never imports torch or fedtiny_train; it reads run folders, ONNX files and board tables.
"""

__version__ = "0.1.0"
