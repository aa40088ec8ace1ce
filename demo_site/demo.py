"""`python -m demo_site.demo`: a shop with 50 purchases, each receipt made on a machine, and proof that it was.

The machines are processes of this computer, behind a local Machines API; the code that launches and runs them is the
code that runs on Fly. DATABASE_URL and REDIS_URL are used when set; nothing else needs to be there.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parent.parent
FLY_VARIABLES = ("FLY_API_HOSTNAME", "FLY_API_TOKEN", "FLY_APP_NAME", "FLY_IMAGE_REF", "FLY_MACHINE_ID")


def main() -> int:
    """The exit status: 0 when everything was made and nothing disagrees, 1 when not, 130 after Ctrl-C."""
    options = _options()
    _set_up()
    from demo_site import journey, tour

    if options.serverless:
        return tour.travel()
    return journey.travel(purchases=options.purchases, file=options.json, serve=options.serve, port=options.port)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description="Make 50 receipts and a sales report on machines.")
    parser.add_argument("--purchases", type=int, default=50, metavar="N", help="how many receipts (default: 50)")
    parser.add_argument("--json", type=Path, default=ROOT / "demo.json", help="where the record of it goes")
    parser.add_argument("--serve", action="store_true", help="keep site and admin running afterwards, until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000, help="of the site (default: 8000, or a free one)")
    parser.add_argument(
        "--serverless", action="store_true", help="instead: have a receipt made by a view on a serverless machine"
    )
    options = parser.parse_args()
    if options.purchases < 1:
        parser.error("--purchases must be at least 1")
    return options


def _set_up() -> None:
    # The demo never talks to Fly, whatever this shell is logged in to.
    for name in FLY_VARIABLES:
        os.environ.pop(name, None)
    os.environ["DJANGO_SETTINGS_MODULE"] = "demo_site.settings"
    os.environ["DEBUG"] = "1"
    os.chdir(ROOT)
    django.setup()
    logging.getLogger().setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
