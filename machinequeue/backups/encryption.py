"""GPG: backups that only the holder of a key can read. The machine that makes them needs the public key alone."""

import io
import os
import shutil
from pathlib import Path
from typing import IO

from django.conf import settings as django_settings

from machinequeue.backups.streams import PIECE, Command
from machinequeue.errors import BackupError, BackupFailed, ConfigurationError, NotProven

GPG = ("gpg", "--batch", "--no-tty", "--yes", "--quiet")
PASSPHRASE_FILE = "BACKUP_PASSPHRASE_FILE"  # noqa: S105 - the name of a variable


def recipient() -> str:
    """For whom backups are encrypted. Raises ConfigurationError when nobody is named."""
    name = getattr(django_settings, "DBBACKUP_GPG_RECIPIENT", None)
    if not name:
        raise ConfigurationError(
            "MACHINEQUEUE['BACKUP_ENCRYPT'] is on, but DBBACKUP_GPG_RECIPIENT names no key. Set it to a key's "
            "fingerprint, or turn BACKUP_ENCRYPT off."
        )
    return str(name)


def encrypted(source: IO[bytes]) -> IO[bytes]:
    """The source, for the recipient."""
    trust = ("--trust-model", "always") if getattr(django_settings, "DBBACKUP_GPG_ALWAYS_TRUST", False) else ()
    return io.BufferedReader(Command([*GPG, *trust, "--recipient", recipient(), "--encrypt"], source=source))


def decrypt(source: Path, target: Path) -> None:
    """Decrypt a file with a key of this computer; a passphrase, if it has one, is in the file BACKUP_PASSPHRASE_FILE.

    Raises NotProven without gpg or the key, BackupError when the file is damaged.
    """
    if shutil.which("gpg") is None:
        raise NotProven("It is encrypted, and gpg is not installed here.")
    file = os.environ.get(PASSPHRASE_FILE, "")
    passphrase = ("--pinentry-mode", "loopback", "--passphrase-file", file) if file else ()
    with source.open("rb") as sealed, target.open("wb") as clear:
        try:
            with io.BufferedReader(Command([*GPG, *passphrase, "--decrypt"], source=sealed)) as output:
                while made := output.read(PIECE):
                    clear.write(made)
        except BackupFailed as error:
            if any(words in str(error) for words in ("No secret key", "passphrase", "No pinentry", "Inappropriate")):
                raise NotProven(f"It is encrypted, and its key cannot be used here: {error}") from error
            raise BackupError(f"it cannot be decrypted: {error}") from error
