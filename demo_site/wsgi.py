"""The site for a WSGI server."""

import gc
import os

from django.core.wsgi import get_wsgi_application
from django.urls import get_resolver

from machinequeue.serverless import idle_shutdown

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo_site.settings")
application = idle_shutdown(get_wsgi_application())
# A server that preloads this module forks its workers from here. Views are imported now, or each worker would hold
# them in memory of its own.
_ = get_resolver().url_patterns
# The collector writes into every object that it looks at; what is frozen here stays shared.
gc.collect()
gc.freeze()
