"""Texts to calibrate on and tasks to measure: of the hub, of stand-ins, from files. No torch."""

from qspec.data.files import read_documents, read_rows
from qspec.data.items import Choice, DataPin, NotMeasured, Scoring, TaskData, TaskItem, TextData, spread
from qspec.data.sources import DataSources, Need

__all__ = [
    "Choice",
    "DataPin",
    "DataSources",
    "Need",
    "NotMeasured",
    "Scoring",
    "TaskData",
    "TaskItem",
    "TextData",
    "read_documents",
    "read_rows",
    "spread",
]
