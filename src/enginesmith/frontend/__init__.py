"""ONNX -> Graph: reading files, and one importer per operator and operator set change."""

from enginesmith.frontend.host_ops import host_notes
from enginesmith.frontend.importer import import_model
from enginesmith.frontend.reader import Model, read_model

__all__ = ["Model", "host_notes", "import_model", "read_model"]
