"""Gates as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

from xml.etree import ElementTree

from qspec.report.data import ReportData
from qspec.report.svg import clean


def junit(data: ReportData) -> str:
    """One test suite, of the recipe; one test case for each gate, failed with what was found."""
    failed = sum(not gate.passed for gate in data.gates)
    counts = {"tests": str(len(data.gates)), "failures": str(failed), "errors": "0"}
    suite = ElementTree.Element("testsuite", {"name": clean(f"{data.recipe.name} on {data.model.id}"), **counts})
    for gate in data.gates:
        case = {"classname": clean(data.recipe.name), "name": clean(f"require {gate.gate}")}
        element = ElementTree.SubElement(suite, "testcase", case)
        if not gate.passed:
            ElementTree.SubElement(element, "failure", {"message": clean(gate.found)})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
