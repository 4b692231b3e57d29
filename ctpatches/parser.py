"""Parsing a command line: spellings of options, and errors in one line. Used by both packages."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from ctpatches.messages import CallError, did_you_mean, printable, quoted


class Parser(argparse.ArgumentParser):
    """Accepts every option with dashes and with underscores; raises CallError."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing the usage and leaving."""
        message = message.replace("ignored explicit argument", "takes no value; found:")
        raise CallError(f"{printable(message)} (see --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the arguments of this parser or of one of its commands; refuse unknown ones."""
        documented = {name.replace("_", "-"): name for name in self._option_string_actions}
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                name = documented.get(name.replace("_", "-"), name)
                if equals and value == "--":  # argparse would drop it
                    self.error(f"{name} has no value")
            words.append(name + equals + value)
        parsed, unknown = super().parse_known_args(words, namespace)
        for name in (word.partition("=")[0] for word in unknown if word.startswith("-")):
            self.error(f"unknown option {name}{did_you_mean(name, documented.values())}")
        if unknown:
            self.error(f"{quoted(unknown[0])} belongs to no option; expected: --option value")
        return parsed, []
