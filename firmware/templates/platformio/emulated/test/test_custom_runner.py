"""How `pio test` reads what a test of an emulated board says: PASS and FAIL lines, and DONE at the end."""

import re

import click
from platformio.test.result import TestCase, TestStatus
from platformio.test.runners.base import TestRunnerBase

CASE = re.compile(r"(PASS|FAIL) ([\w.-]+)")


class CustomTestRunner(TestRunnerBase):
    """PlatformIO wants a class of this name."""

    def on_testing_line_output(self, line: str) -> None:
        """One line of the emulator's output."""
        line = line.strip()
        click.echo(line)
        case = CASE.fullmatch(line)
        if case:
            status = TestStatus.PASSED if case.group(1) == "PASS" else TestStatus.FAILED
            self.test_suite.add_case(TestCase(name=case.group(2), status=status))
        elif line == "DONE":
            self.test_suite.on_finish()
