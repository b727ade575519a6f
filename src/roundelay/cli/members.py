"""Who may take part: list, invite and revoke clients; write kits for sites."""

import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from roundelay.cli.common import SERVER_FOLDER, ServerFolder, console, say
from roundelay.errors import IdentityError

if TYPE_CHECKING:  # what these are made of comes with an extra, which other commands do without
    from roundelay.deployment.trust.members import Member
    from roundelay.deployment.trust.roster import Roster

app = typer.Typer(no_args_is_help=True, help="Who may take part in the runs of a server, also while one runs.")
kits = typer.Typer()
Name = Annotated[str, typer.Argument(help="The client's name.")]
Days = Annotated[float, typer.Option(help="For how many days a token is good.")]
_DAY_S = 86_400.0


@app.command("list")
def clients_list(folder: ServerFolder = SERVER_FOLDER) -> None:
    """List who has joined and who is invited; and who is there, if the server runs."""
    roster, now_s = _roster(folder), time.time()
    silent_s = _silent_s(folder)
    table = Table("client", "state", *(() if silent_s is None else ("last heard of",)))
    for member in roster.members():
        heard = "" if silent_s is None else _ago(silent_s.get(member.client))
        table.add_row(member.client, _state(member, now_s), *(() if silent_s is None else (heard,)))
    console.print(table)
    for one in roster.invitations():
        if one.seats and now_s < one.expires_s:
            whom = ", ".join(one.names[:8]) + ", ..." * (len(one.names) > 8)
            say(f"an open join line has {one.seats} seats left, until {_date(one.expires_s)}, for {whom}")


@app.command("invite")
def clients_invite(
    name: Name,
    days: Days = 7.0,
    address: Annotated[
        str | None, typer.Option(help="https://HOST:PORT, where the server was not started yet.")
    ] = None,
    folder: ServerFolder = SERVER_FOLDER,
) -> None:
    """Make a join line for one client, which is good once. For a client that has joined: for its new machine."""
    from roundelay.deployment.trust.address import Address, join_line
    from roundelay.deployment.trust.certificates import Authority
    from roundelay.deployment.trust.place import last_address
    from roundelay.deployment.trust.roster import Roster

    where = last_address(folder) if address is None else Address.of(address)
    if where is None:
        raise IdentityError(f"{folder}: no server was started from this folder yet; say where it will be with "
                            "--address https://HOST:PORT")  # fmt: skip
    if not where.secured:
        raise IdentityError(f"{where}: a server without TLS has no pin for a join line; start it without --insecure")
    authority = Authority.open(folder, time.time())
    token = Roster(_file(folder)).invite(name, days * _DAY_S, time.time())
    say(join_line(where, authority.pin, token.reveal()))


@app.command("revoke")
def clients_revoke(name: Name, folder: ServerFolder = SERVER_FOLDER) -> None:
    """Shut a client out, at once: nothing that its key signs is taken any more, and its token is void."""
    roster = _roster(folder)
    if name not in roster:
        raise IdentityError(f"there is no client {name!r}; there are: {', '.join(roster.clients()) or 'none'}")
    roster.revoke(name)
    say(f"client {name!r} is out; to let it in again, with a new key: roundelay clients invite {name}")
    if any(one.seats and time.time() < one.expires_s for one in roster.invitations()):
        say("an open join line has seats left: whoever has it could come in again under another name; to make it void: "
            "roundelay clients close")  # fmt: skip


@app.command("close")
def clients_close(folder: ServerFolder = SERVER_FOLDER) -> None:
    """Make the open join lines void, which a server prints for all at once. Who has joined stays."""
    say(f"{_roster(folder).close_doors()} seats that were left are closed")


@kits.command()
def provision(
    folder: Annotated[Path, typer.Argument(help="Where to write the kits; must not exist yet.")],
    name: Annotated[list[str], typer.Option(help="What sites reach the server under; the first goes into the kits.")],
    site: Annotated[list[str], typer.Option(help="A site's name, which is its client's.")],
    port: Annotated[int, typer.Option(help="The server's port.")] = 8443,
    days: Days = 30.0,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Make the sites' keys here, instead of tokens for keys of their own.")
    ] = False,
) -> None:
    """Write a kit for the server and one for each site, to be handed out."""
    from roundelay.deployment.trust.certificates import Authority
    from roundelay.deployment.trust.kits import README
    from roundelay.deployment.trust.kits import provision as write

    now_s = time.time()
    write(folder, name, site, now_s=now_s, port=port, token_days=days, with_keys=with_keys)
    say(f"the server: {folder / 'server'}; start it with: roundelay serve job.toml --folder {folder / 'server'} "
        f"--clients {','.join(site)}")  # fmt: skip
    say(f"{len(site)} sites, each with a {README} that says what to do: {folder / 'sites'}")
    say(f"the pin, for sites to compare by telephone: {Authority.open(folder / 'server', now_s).pin}")


def _file(folder: Path) -> Path:
    from roundelay.deployment.trust.kits import ROSTER

    return folder / ROSTER


def _roster(folder: Path) -> "Roster":
    from roundelay.deployment.trust.roster import Roster

    if not _file(folder).exists():
        raise IdentityError(f"{folder}: no server keeps its clients there; give the folder that it was started with "
                            "(--folder)")  # fmt: skip
    return Roster(_file(folder))


def _state(member: "Member", now_s: float) -> str:
    if member.waits(now_s):
        until = f"until {_date(member.expires_s)}"
        return f"joined; its new machine is invited {until}" if member.public_key else f"invited {until}"
    if member.public_key:
        return "joined"
    return f"its token ran out on {_date(member.expires_s)}"


def _silent_s(folder: Path) -> dict[str, float] | None:
    """Return how long ago each client was heard of by the server, None where that does not run, or cannot be asked."""
    from roundelay.deployment.protocol import STATS
    from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC
    from roundelay.deployment.trust.pinning import client_context
    from roundelay.deployment.trust.place import LOOPBACK, last_address
    from roundelay.deployment.trust.questions import ask

    address = last_address(folder)
    if address is None:
        return None
    try:
        context = client_context((folder / AUTHORITY_PUBLIC).read_bytes()) if address.secured else None
    except (IdentityError, OSError):
        return None
    for at in (LOOPBACK, None):  # it tells its own machine only, to which its name may not lead
        with suppress(IdentityError, OSError):
            told = ask(address, STATS, context, timeout_s=2.0, at=at).table().get("silent_s")
            if isinstance(told, dict):
                return told
    return None


def _ago(seconds: float | None) -> str:
    return "not since it started" if seconds is None else f"{seconds:.0f} s ago"


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
