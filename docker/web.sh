#!/bin/sh
# The site: gunicorn with as many workers as this machine's memory holds. Every value can be set from outside.
set -eu

# Fly makes swap itself where fly.toml has swap_size_mb. Elsewhere, root may make it: SWAP_MB=512.
if [ "${SWAP_MB:-0}" -gt 0 ] && [ "$(id -u)" -eq 0 ] && [ ! -e /swapfile ]; then
    fallocate -l "${SWAP_MB}M" /swapfile
    chmod 600 /swapfile
    mkswap /swapfile >/dev/null
    swapon /swapfile
fi

# Measured with the demo site under load: 65 MB that all processes share, 21 MB for each. Counted here with some to spare,
# and 96 MB for the system. Two workers at least: a slow page must not block the health check.
memory_mb=${FLY_VM_MEMORY_MB:-$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)}
workers=$(((memory_mb - 96 - 108) / 25))
most=$((2 * $(getconf _NPROCESSORS_ONLN) + 1))
[ "$workers" -le "$most" ] || workers=$most
[ "$workers" -ge 2 ] || workers=2

# Fly gives every machine of the app all of its secrets. The site never talks to the Machines API, so it forgets the tokens.
unset FLY_API_TOKEN MACHINEQUEUE_CONTAINER_TOKEN

# --preload: Django is loaded once and shared by all workers. --graceful-timeout is less than fly.toml's kill_timeout.
# --max-requests: a worker that leaks is replaced; the jitter keeps them from all going at once.
exec gunicorn "${WSGI_APPLICATION:-demo_site.wsgi}" \
    --bind "${BIND:-[::]:8080}" \
    --workers "${WEB_CONCURRENCY:-$workers}" \
    --threads "${WEB_THREADS:-2}" \
    --preload \
    --max-requests 2000 --max-requests-jitter 200 \
    --timeout 30 --graceful-timeout 20 --keep-alive 75 \
    --worker-tmp-dir /dev/shm \
    --access-logfile "${ACCESS_LOG:-/dev/null}"
