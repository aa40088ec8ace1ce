#!/usr/bin/env python
"""Commands of the workshop, on a machine and off it."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.workshop.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
