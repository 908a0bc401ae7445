"""Texts to calibrate on and tasks to measure: of the hub, of stand-ins, from files. No torch."""

from qspec.data.files import read_documents, read_rows
from qspec.data.items import (
    CHOICES,
    EXACT,
    Choice,
    DataPin,
    NotMeasured,
    Scores,
    Scoring,
    TaskData,
    TaskItem,
    TextData,
    spread,
)
from qspec.data.sources import DataSources, Need

__all__ = [
    "CHOICES",
    "EXACT",
    "Choice",
    "DataPin",
    "DataSources",
    "Need",
    "NotMeasured",
    "Scores",
    "Scoring",
    "TaskData",
    "TaskItem",
    "TextData",
    "read_documents",
    "read_rows",
    "spread",
]
