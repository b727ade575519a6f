"""``roundelay doctor``: what works, what does not, and what to do."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from roundelay.cli.common import console
from roundelay.errors import ConfigError

app = typer.Typer()
AtSite, AtServer = "At a site", "At the server"
_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="At a site: https://HOST:PORT of the server.")
    ] = None,
    pin: Annotated[str, typer.Option(help="The server's pin.", rich_help_panel=AtSite)] = "",
    folder: Annotated[
        Path | None, typer.Option(help="The client's folder, if it has joined, or its kit.", rich_help_panel=AtSite)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain HTTP is meant.", rich_help_panel=AtSite)] = False,
    server: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The server's folder, as serve's --folder.", rich_help_panel=AtServer),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where its run folders are.", rich_help_panel=AtServer)] = Path("runs"),
    host: Annotated[str, typer.Option(help="Where it listens.", rich_help_panel=AtServer)] = "0.0.0.0",
    port: Annotated[
        int | None, typer.Option(help="On which port, if not where it was last.", rich_help_panel=AtServer)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at everything that a client or a server needs; exit status 1 if something is wrong."""
    from roundelay.deployment.doctor.server import examine_server
    from roundelay.deployment.doctor.site import examine_site

    if (url is None) == (server is None):
        raise ConfigError("give the server's URL at a site, or --server FOLDER at the server")
    if server is not None:
        findings = examine_server(server, runs, host, port)
    else:
        assert url is not None
        findings = examine_site(url, pin, folder, insecure=insecure)
    healthy = all(finding.state != "wrong" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        for finding in findings:
            colour = _COLOURS[finding.state]
            shown = f"[{colour}]{finding.state:<8}[/{colour}] {finding.about}: {escape(finding.text)}"
            console.print(shown, soft_wrap=True, highlight=False)
    if not healthy:
        raise typer.Exit(1)
