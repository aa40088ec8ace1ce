"""Enqueue a few tasks, wait for them, and print what came of them as JSON."""

import json
from typing import Any

from django.core.management.base import BaseCommand

from tests.workshop import tasks


class Command(BaseCommand):
    help = "Enqueue a few tasks, wait for them, and print what came of them."

    def handle(self, *args: Any, **options: Any) -> None:
        results = [tasks.add.enqueue(2, 3), tasks.whoami.enqueue(), tasks.boom.enqueue(), tasks.report.enqueue(7)]
        for result in results:
            result.wait(timeout=60)
        told = [
            {
                "status": result.status,
                "value": result.return_value if result.status == "SUCCESSFUL" else None,
                "errors": [error.exception_class_path for error in result.errors],
                "output": result.output,
                "history": [{key: each[key] for key in ("status", "machine", "pid")} for each in result.history],
            }
            for result in results
        ]
        self.stdout.write(json.dumps(told, default=str))
