"""Fill the shop."""

import argparse
from typing import Any

from django.core.management.base import BaseCommand

from demo_site.store.models import Purchase
from demo_site.store.seeding import seed_purchases


class Command(BaseCommand):
    help = "Fill the shop with its products and N purchases, the same every time. What is there already stays."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--purchases", type=_count, default=50, metavar="N", help="how many (default: 50)")

    def handle(self, *args: Any, **options: Any) -> None:
        made = seed_purchases(options["purchases"])
        self.stdout.write(f"Made {made} purchases; the shop has {Purchase.objects.count()}.")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of purchases: 0, 1, 2 ...")
    return int(text)
