"""Fine-tune an image classifier on a folder of photos, export it to ONNX, serve it."""

__version__ = "0.1.0"
