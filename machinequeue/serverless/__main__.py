"""The entrypoint of a serverless machine: become the server that the words after it name.

`python -m machinequeue.serverless python -m gunicorn --bind {bind} shop.wsgi` listens where requests arrive: on every
address of a Fly machine, and on the machine's own address where many share one computer.
"""

import os
import sys

PORT = "MACHINEQUEUE_SERVERLESS_PORT"


def address(environ: "os._Environ[str] | dict[str, str]") -> tuple[str, str]:
    """Host and port on which the server of this machine has to listen."""
    private = environ.get("FLY_PRIVATE_IP", "")
    return (private if private.startswith("127.") else "::"), environ.get(PORT, "8080")


def words(command: list[str], host: str, port: str) -> list[str]:
    """The command with its places filled in; other braces are left alone."""
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    places = {"{bind}": bind, "{host}": host, "{port}": port}
    for place, value in places.items():
        command = [word.replace(place, value) for word in command]
    return command


def main() -> None:
    """Replace this process, so that signals reach the server."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m machinequeue.serverless COMMAND [ARGUMENT ...], see SERVERLESS_COMMAND")
    program, *rest = words(sys.argv[1:], *address(os.environ))
    program = sys.executable if program == "python" else program
    try:
        os.execvp(program, [program, *rest])  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise SystemExit(f"{program!r} of SERVERLESS_COMMAND cannot be run: {error.strerror}.") from None


if __name__ == "__main__":
    main()
