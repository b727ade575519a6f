"""Kits: one folder for the server and one for each site, made in one go, to be handed out before anything runs."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from roundelay.deployment.trust.address import Address, join_line
from roundelay.deployment.trust.certificates import (
    AUTHORITY_PUBLIC,
    AUTHORITY_SECRET,
    SERVER_SECRET,
    Authority,
    checked_names,
    server_certificate,
)
from roundelay.deployment.trust.identity import DeviceKey, checked_name, write_secret
from roundelay.deployment.trust.place import SETTINGS, settle
from roundelay.deployment.trust.roster import Roster
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
    settle(server, names, address.port)
    roster = Roster(server / ROSTER)
    for site in sites:
        kit = folder / "sites" / site
        kit.mkdir(mode=0o700, parents=True)
        _public(kit / AUTHORITY_PUBLIC, authority.pem)
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
        secret = f"* `{DEVICE_KEY}`: **secret.** This site's private key; whoever has it can speak for this site."
        lost = (f"* **`{DEVICE_KEY}` was lost, or somebody else may have seen it.** Tell the server's administrator\n"
                "  at once, who shuts it out and sends a new kit.")  # fmt: skip
        start = f"Keep `{DEVICE_KEY}` in this folder: the program uses it instead of making a key of its own."
    else:
        secret = (f"* `{TOKEN}`: **secret until it was used.** A one-time token; it is valid for {token_days:g} days.\n"
                  f"* `{JOIN_LINE}`: **secret until it was used.** The same token in a line by itself, for a\n"
                  "  machine to which this folder cannot be taken; it needs nothing else of this folder.")  # fmt: skip
        lost = ("* **\"This token has been used with another key\", and nobody at your site has used it.** Somebody\n"
                "  else has. Tell the server's administrator at once.\n"
                "* **\"This token ran out\".** Ask for a new one.")  # fmt: skip
        start = "At its first start the program makes a key of its own, which never leaves this machine."
    return _SITE.format(
        site=site, host=address.host, port=address.port, url=address, pin=pin, authority=AUTHORITY_PUBLIC,
        secret=secret, lost=lost, start=start,
    )  # fmt: skip


def _server_readme(names: Sequence[str], sites: Sequence[str], address: Address, pin: str) -> str:
    return _SERVER.format(
        names=", ".join(names), url=address, port=address.port, pin=pin, sites="\n".join(f"* `{s}`" for s in sites),
        authority=AUTHORITY_PUBLIC, secret=AUTHORITY_SECRET, key=SERVER_SECRET, roster=ROSTER,
        settings=SETTINGS, clients=",".join(sites),
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
4. Run, in this folder:

       roundelay join {url} --kit . --id {site} --data mnist:./data

   What stands behind `--data` is your data; the federation's project says what it is to be: a known data set and its
   folder, or `my_module:my_function`, or, in place of `--data`, a training script of your own (`--script train.py`).

{start}
This folder is also where the program keeps what it must not forget: its key, its answers until the server has them. Do
not delete it while a run goes on. The same command goes on after a restart, and needs the token no more.

## If it does not work

This looks at everything between this machine and the server, and says what is wrong and what to do:

    roundelay doctor {url} --folder .

Beyond that:

* **It says that the pin is another one.** Do not go on. Somebody may stand between you and {url}.
* **The machine is replaced.** Ask for a new token; the new machine makes a new key.
{lost}
"""

_SERVER = """# The server of the federation

It is reached at {url} (names in its certificate: {names}), and listens on port {port}.
Its pin, which sites compare by telephone:

    {pin}

## What to do

Start it in the folder of the job, with the names of the sites as those of the clients:

    roundelay serve job.toml --folder THIS_FOLDER --clients {clients}

Names and port are in `{settings}`; edit it, or give `--name` and `--port`. Leave `--clients` out where the job's data
names the same clients. `roundelay doctor --server THIS_FOLDER` looks at everything that could be in the way, and
`roundelay clients list --folder THIS_FOLDER` at who has joined.

## What is in this folder

* `{secret}`: **the most secret file of the federation.** Whoever has it can pose as the server. If it is lost, every
  site needs a new join line: keep a copy, offline.
* `{key}`: **secret.** The server's own key and certificate. It is made anew when names change or its end is near.
* `{authority}`: what sites trust. Not secret.
* `{settings}`: under which names and port the server is reached.
* `{roster}`: who may take part: public keys, and hashes of the tokens that were not used yet. Nobody else may
  change it.

## Sites

{sites}

Hand each site its own folder out of `sites/`, and no other, on a way that nobody reads along: in person, or encrypted.
Then delete your copy: this server does not need it.
"""
