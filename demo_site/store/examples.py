"""What the workbench offers to begin with: one good snippet, and some that mean harm."""

from django.utils.translation import gettext_lazy as _

PRIMES = """\
def primes(limit):
    sieve = bytearray([1]) * limit
    for n in range(2, limit):
        if sieve[n]:
            yield n
            sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))

print(*primes(100))
"""
FORKS = """\
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
"""
MEMORY = """\
data = []
while True:
    data.append(bytes(10_000_000))
"""
DISK = """\
written = 0
for number in range(1000):
    with open(f"/tmp/{number}", "wb") as file:
        written += file.write(bytes(1_000_000))
        print(written)
"""
LOOP = """\
while True:
    pass
"""
SECRETS = """\
import os

print(dict(os.environ))
for path in ("/proc/1/environ", "/etc/shadow", "/root", "/var"):
    try:
        print(path, os.listdir(path) if os.path.isdir(path) else open(path).read())
    except OSError as error:
        print(error)
"""
PORTS = """\
import socket

for port in (5432, 6379, 4280):
    try:
        socket.create_connection(("127.0.0.1", port), 3)
        print(port, "is open")
    except OSError as error:
        print(port, error)
"""

EXAMPLES = {
    "primes": (_("Primes"), PRIMES),
    "forks": (_("A fork bomb"), FORKS),
    "memory": (_("All the memory"), MEMORY),
    "disk": (_("A full disk"), DISK),
    "loop": (_("An endless loop"), LOOP),
    "secrets": (_("Our secrets"), SECRETS),
    "ports": (_("Our database"), PORTS),
}
