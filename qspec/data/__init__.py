"""Texts to calibrate on and tasks to measure: read from files, stand-ins and benchmark folders. No torch."""

from qspec.data.files import read_documents, read_rows
from qspec.data.items import Choice, DataPin, NotMeasured, Scoring, TaskData, TaskItem, TextData, spread
from qspec.data.sources import DataSources

__all__ = [
    "Choice",
    "DataPin",
    "DataSources",
    "NotMeasured",
    "Scoring",
    "TaskData",
    "TaskItem",
    "TextData",
    "read_documents",
    "read_rows",
    "spread",
]
