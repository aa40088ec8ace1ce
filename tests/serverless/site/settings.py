"""The workshop with pages, of which some are answered by serverless machines."""

import json
import os

from tests.workshop.settings import *  # noqa: F403
from tests.workshop.settings import DATABASES as CONNECTIONS
from tests.workshop.settings import MACHINEQUEUE as WORKSHOPS
from tests.workshop.settings import MIDDLEWARE as SESSIONS

# Without them a thread that kept its connection through a restart of the database answers its next request with 500.
DATABASES = {"default": {**CONNECTIONS["default"], "CONN_HEALTH_CHECKS": True}}
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.serverless.site.urls"
WSGI_APPLICATION = "tests.serverless.site.wsgi.application"
ASGI_APPLICATION = "tests.serverless.site.asgi.application"
STATIC_URL = "/static/"
MIDDLEWARE = ["machinequeue.serverless.ServerlessMiddleware", *SESSIONS]
MACHINEQUEUE = {
    **WORKSHOPS,
    "SERVERLESS_VIEWS": [("site:listed", ["GET"])],
    "SERVERLESS_MEMORY_MB": 512,
    "SERVERLESS_DRAIN": 5,
    **json.loads(os.environ.get("SITE_SETTINGS", "{}")),
}
