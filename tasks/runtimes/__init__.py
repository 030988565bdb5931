"""What travels with an exported model: one file per modality, importing nothing of Stillmark.

The same file turns raw rows into network inputs when the data is prepared and when the model
serves, so the two cannot drift apart. MLflow stores a copy of it beside the ONNX file.
"""
