"""Where the activation outliers of a checkpoint are, how large, on how many tokens, by mask ratio (`qspec inspect`)."""

from qspec.inspect.data import Inspection
from qspec.inspect.measure import MaskedText, inspect
from qspec.inspect.render import write_inspection

__all__ = ["Inspection", "MaskedText", "inspect", "write_inspection"]
