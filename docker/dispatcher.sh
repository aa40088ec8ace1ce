#!/bin/sh
# The dispatcher: `exec`, so that it gets SIGTERM itself, and has kill_timeout to hand over.
set -eu
exec python manage.py mq_dispatcher "$@"
