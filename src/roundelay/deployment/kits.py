"""Kits: one folder for the server and one for each site, made in one go, to be handed out before anything runs."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from roundelay.deployment.certificates import (
    AUTHORITY_PUBLIC,
    AUTHORITY_SECRET,
    SERVER_SECRET,
    Authority,
    checked_names,
    server_certificate,
)
from roundelay.deployment.identity import DeviceKey, checked_name, write_secret
from roundelay.deployment.pinning import Address, join_line
from roundelay.deployment.roster import Roster
from roundelay.errors import IdentityError
from roundelay.files import save_atomically

ROSTER, DEVICE_KEY, TOKEN, JOIN_LINE, README = "roster.json", "device.key", "token", "join.txt", "README.md"
TOKEN_DAYS = 30.0
_DAY_S = 86_400.0


def provision(
    folder: Path,
    names: Sequence[str],
    sites: Sequence[str],
    *,
    now_s: float,
    port: int = 8443,
    token_days: float = TOKEN_DAYS,
    with_keys: bool = False,
) -> None:
    """Write ``folder/server`` and ``folder/sites/<site>`` for each site: all of it, or nothing.

    ``names`` are what clients reach the server under; the join lines use the first. A site gets a one-time token, and
    makes its own key; or, ``with_keys``, a key that is made here and was known to whoever made the kit.

    Raises:
        IdentityError: the folder is not empty, or a name or a number cannot be.
    """
    checked_names(names)
    address = Address.of(str(Address(checked_names(names[:1])[0], port)))
    if len(set(sites)) != len(sites) or not sites:
        raise IdentityError(f"sites: expected at least one, each once, got {list(sites)}")
    for site in sites:
        checked_name(site, "site")
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise IdentityError(
            f"{folder}: is there already, and kits are never overwritten: whoever has one of the old could not join. "
            "Give another folder, or move this one away"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))  # of mode 0700, and stays so
    try:
        _write(unfinished, names, sites, address, now_s, token_days, with_keys)
        os.rename(unfinished, folder)  # fails if somebody has put something into the folder meanwhile
    except OSError as error:
        raise IdentityError(f"{folder}: cannot write the kits there ({error.strerror})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(
    folder: Path, names: Sequence[str], sites: Sequence[str], address: Address, now_s: float, token_days: float,
    with_keys: bool,
) -> None:  # fmt: skip
    server = folder / "server"
    authority = Authority.open(server, now_s)
    server_certificate(server, names, now_s)
    roster = Roster(server / ROSTER)
    for site in sites:
        kit = folder / "sites" / site
        kit.mkdir(mode=0o700, parents=True)
        _public(kit / AUTHORITY_PUBLIC, authority.pem)
        token = ""
        if with_keys:
            key = DeviceKey.new()
            key.save(kit / DEVICE_KEY)
            roster.admit(site, key.public)
        else:
            token = roster.invite(site, token_days * _DAY_S, now_s).reveal()
            write_secret(kit / TOKEN, f"{token}\n".encode())
        line = join_line(address, authority.pin, token)
        write_secret(kit / JOIN_LINE, f"{line}\n".encode())
        text = _site_readme(site, address, authority.pin, None if with_keys else token_days)
        _public(kit / README, text.encode())
    _public(server / README, _server_readme(names, sites, address, authority.pin).encode())


def _public(path: Path, content: bytes) -> None:
    save_atomically(path, lambda file: file.write(content))


def _site_readme(site: str, address: Address, pin: str, token_days: float | None) -> str:
    """``token_days`` is None where the kit holds a key instead of a token."""
    if token_days is None:
        secret = (f"* `{DEVICE_KEY}`: **secret.** This site's private key. Whoever has it can speak for this site.\n"
                  f"* `{JOIN_LINE}`: the line to type.")  # fmt: skip
        lost = (f"* **`{DEVICE_KEY}` was lost, or somebody else may have seen it.** Tell the server's administrator\n"
                "  at once, who shuts it out and sends a new kit.")  # fmt: skip
        start = f"Keep `{DEVICE_KEY}` in this folder: the program uses it instead of making a key of its own."
    else:
        secret = (f"* `{JOIN_LINE}`: **secret until it was used.** The line to type.\n"
                  f"* `{TOKEN}`: **secret until it was used.** The one-time token of that line by itself; it is valid\n"
                  f"  for {token_days:g} days.")  # fmt: skip
        lost = ("* **\"This token has been used with another key\", and nobody at your site has used it.** Somebody\n"
                "  else has. Tell the server's administrator at once.\n"
                "* **\"This token ran out\".** Ask for a new one.")  # fmt: skip
        start = "At its first start the program makes a key of its own, which never leaves this machine."
    return _SITE.format(
        site=site, host=address.host, port=address.port, url=address, pin=pin, authority=AUTHORITY_PUBLIC,
        join=JOIN_LINE, secret=secret, lost=lost, start=start,
    )  # fmt: skip


def _server_readme(names: Sequence[str], sites: Sequence[str], address: Address, pin: str) -> str:
    return _SERVER.format(
        names=", ".join(names), url=address, port=address.port, pin=pin, sites="\n".join(f"* `{s}`" for s in sites),
        authority=AUTHORITY_PUBLIC, secret=AUTHORITY_SECRET, key=SERVER_SECRET, roster=ROSTER,
    )  # fmt: skip


_SITE = """# Joining the federation as `{site}`

This folder lets one machine of your site take part in federated learning. Your data stay on that machine: what is sent
is a trained model and the numbers that describe its training.

## What is in this folder

{secret}
* `{authority}`: the certificate that the server proves itself with. Not secret.

The files that are marked secret must be readable by the account that runs the program, and by nobody else. After
copying, run `chmod 600` on them.

## What your network must allow

Outgoing HTTPS (TCP) from that machine to `{host}`, port {port}. Nothing has to be opened towards the inside. A proxy
that breaks TLS open to look inside cannot be used, and is told apart from the server.

## What to do

1. Call the server's administrator, by telephone or in person, and compare the pin. It must be, letter by letter:

       {pin}

2. Check that the machine's clock is right (`date`).
3. Install the program: `pip install 'roundelay[serve]'`.
4. Run, in this folder, the line that is in `{join}`: `sh ./{join}`.

{start}

## If it does not work

The program says what is wrong and what to do. Beyond that:

* **It says that the pin is another one.** Do not go on. Somebody may stand between you and {url}.
* **The machine is replaced.** Ask for a new token; the new machine makes a new key.
{lost}
"""

_SERVER = """# The server of the federation

It is reached at {url} (names in its certificate: {names}), and listens on port {port}.
Its pin, which sites compare by telephone:

    {pin}

## What is in this folder

* `{secret}`: **the most secret file of the federation.** Whoever has it can pose as the server. If it is lost, every
  site needs a new join line: keep a copy, offline.
* `{key}`: **secret.** The server's own key and certificate. It is made anew when names change or its end is near.
* `{authority}`: what sites trust. Not secret.
* `{roster}`: who may take part: public keys, and hashes of the tokens that were not used yet. Nobody else may
  change it.

## Sites

{sites}

Hand each site its own folder out of `sites/`, and no other, on a way that nobody reads along: in person, or encrypted.
Then delete your copy: this server does not need it.
"""
