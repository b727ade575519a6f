"""Runs on real devices: serve a job, join one, be a worker that listens."""

import asyncio
import gc
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roundelay import config
from roundelay.cli.common import SERVER_FOLDER, JobFile, Overrides, ServerFolder, concluded, console, remind, say
from roundelay.cli.logs import quiet_unless, telling
from roundelay.client.launch import arguments_of
from roundelay.errors import ConfigError
from roundelay.history import History
from roundelay.report.progress import shown

if TYPE_CHECKING:  # what these are made of comes with an extra, which other commands do without
    from roundelay.deployment.device.device import Device
    from roundelay.deployment.device.hands import Hands
    from roundelay.deployment.device.link import Link
    from roundelay.deployment.protocol import Briefing
    from roundelay.serving import Serving
    from roundelay.site import Brought

app = typer.Typer()

OfSites = "What the site brings"
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain HTTP to other machines: all can be read.")]
Id = Annotated[str | None, typer.Option("--id", help="The client's name.")]
Folder = Annotated[Path | None, typer.Option(help="Where this client keeps its key and its answers.")]
Pin = Annotated[str, typer.Option(help="The server's pin, from its administrator.")]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="[HOST:]PORT", help="Where Prometheus may ask; a port alone is for this machine only."),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say more of what goes on.")]
DataSpec = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME:FOLDER", help="Its data: mnist:./data, or module:function.",
                 rich_help_panel=OfSites),
]  # fmt: skip
Shard = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Only part I of N (from 0), as the job splits data.", rich_help_panel=OfSites),
]
SplitFile = Annotated[
    Path | None, typer.Option(help="A file that says which examples are its own.", rich_help_panel=OfSites)
]
JobWord = Annotated[
    str | None,
    typer.Option("--job", metavar="FILE", help="A job installed here, or module:NAME.", rich_help_panel=OfSites),
]
ScriptFile = Annotated[Path | None, typer.Option(help="Its own training script.", rich_help_panel=OfSites)]
ScriptArgs = Annotated[str, typer.Option(help="The script's command line.", rich_help_panel=OfSites)]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE:NAME", help="What the server may ask for beyond roundelay's own parts.",
                 rich_help_panel=OfSites),
]  # fmt: skip
TellLabels = Annotated[
    bool, typer.Option("--tell-labels", help="Tell how many examples of each class are here, not only how many.")
]


@app.command()
def serve(
    job: JobFile,
    set: Overrides = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere.")] = "0.0.0.0",
    port: Annotated[int | None, typer.Option(help="One port, for everything; 8443, or the kit's.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="What clients reach this machine under.")] = None,
    clients: Annotated[
        str | None, typer.Option(help="alice,bob or 3: who takes part, where the job's data does not say.")
    ] = None,
    folder: ServerFolder = SERVER_FOLDER,
    metrics: Metrics = None,
    insecure: Insecure = False,
    verbose: Verbose = False,
) -> None:
    """Serve a job to clients that join. After a crash, the same command goes on with the run."""
    from roundelay.deployment.trust.place import Listening, Place
    from roundelay.serving import Serving

    quiet_unless(verbose)
    measured = None if metrics is None else Listening.of(metrics)
    place = Place(folder, host, port, tuple(name or ()), insecure, metrics=measured)

    def opened() -> Serving:
        serving = Serving(config.load(job, set or []).prepared(_named(clients)), place)
        if measured is not None:
            tell = telling(say)
            tell(f"metrics: http://{measured.host}:{serving.metrics_port}/metrics")
        _say_who_may_join(serving)
        gc.freeze()  # what was imported stays: no collection, while clients wait, need walk over all of it again
        return serving

    remind(job, served(opened))


def _say_who_may_join(serving: "Serving") -> None:
    strangers = serving.strangers
    if strangers:
        say(f"{len(strangers)} of {len(serving.clients)} clients have yet to join; each of them runs, with its own "
            "data:")  # fmt: skip
        say(f"  {serving.join_line}")
    known = [client for client in serving.clients if client not in strangers]
    if known:
        say(f"{len(known)} of {len(serving.clients)} clients are known ({', '.join(known[:8])}"
            f"{', ...' if len(known) > 8 else ''}); they come with a kit or token of their own, or come back, "
            "in the folder where they joined, with:")  # fmt: skip
        say(f"  {serving.return_line}")


@app.command()
def join(
    server: Annotated[str, typer.Argument(metavar="URL", help="https://HOST:PORT, from the server's join line.")],
    token: Annotated[str, typer.Option(help="The token of the join line.")] = "",
    token_file: Annotated[Path | None, typer.Option(help="A file of mode 0600 with the token.")] = None,
    pin: Pin = "",
    kit: Annotated[
        Path | None, typer.Option(help="A kit folder, instead of token and pin; this client's folder, too.")
    ] = None,
    id: Id = None,
    data: DataSpec = None,
    shard: Shard = None,
    split: SplitFile = None,
    job: JobWord = None,
    script: ScriptFile = None,
    script_args: ScriptArgs = "",
    allow: Allow = None,
    tell_labels: TellLabels = False,
    folder: Folder = None,
    insecure: Insecure = False,
    verbose: Verbose = False,
) -> None:
    """Take part in a run as a client, with the data that is here. Only this machine opens connections."""
    from roundelay.deployment.device.device import Device
    from roundelay.deployment.device.joining import enrolled, require_kit, token_in
    from roundelay.deployment.patience import Patience
    from roundelay.deployment.trust.identity import checked_name
    from roundelay.site import Brought

    brought = Brought(data, shard, split, job, script, arguments_of(script_args), tuple(allow or ()))
    if id is not None:
        checked_name(id)  # which names a folder
    if token_file is not None:
        token = token_in(token_file)

    async def take_part(device: Device) -> None:
        # A server that was never reached is told at once: the address may be wrong. One that is known, or goes away in
        # the middle of the joining, is waited for.
        patience = Patience(tell, asyncio.sleep, time.monotonic, random.random)
        link = await patience.insist(
            lambda: enrolled(device, server, token=token, pin=pin, client=id, kit=kit, insecure=insecure)
        )
        async with link:
            tell(f"client {link.client!r} takes part; its keys and answers are in {device.folder}")
            tell(f"over: {await _agent(link, device, brought, tell_labels)}")

    quiet_unless(verbose)
    tell = telling(say)
    if kit is not None:
        require_kit(kit)
    with Device(folder or kit or Path(".roundelay") / (id or "client")) as device:
        _until_stopped(lambda: take_part(device))


@app.command()
def worker(
    id: Annotated[str, typer.Option("--id", help="The client's name.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="On which port.")] = 10002,
    data: DataSpec = None,
    shard: Shard = None,
    split: SplitFile = None,
    job: JobWord = None,
    script: ScriptFile = None,
    script_args: ScriptArgs = "",
    allow: Allow = None,
    pin: Pin = "",
    tell_labels: TellLabels = False,
    folder: Folder = None,
    insecure: Insecure = False,
    verbose: Verbose = False,
) -> None:
    """Wait beside some data for coordinators that connect; the data never leaves."""
    from roundelay.deployment.device.device import Device
    from roundelay.deployment.device.reverse import Listener
    from roundelay.deployment.device.worker import worker_loop
    from roundelay.deployment.trust.identity import checked_name
    from roundelay.site import Brought

    checked_name(id)  # which names a folder
    brought = Brought(data, shard, split, job, script, arguments_of(script_args), tuple(allow or ()))

    async def wait(device: Device) -> None:
        async with Listener(device, tell, client=id, pin=pin, insecure=insecure) as listener:
            there = await listener.start(host, port)
            tell(f"worker {id!r} waits on {host}:{there}")
            await worker_loop(listener, device, lambda link: _agent(link, device, brought, tell_labels), tell)

    quiet_unless(verbose)
    tell = telling(say)
    with Device(folder or Path(".roundelay") / id) as device:
        _until_stopped(lambda: wait(device))


async def _agent(link: "Link", device: "Device", brought: "Brought", tell_labels: bool) -> str:
    from roundelay.deployment.device.agent import Agent
    from roundelay.site import hands_for, holding

    def hands(briefing: "Briefing") -> "Hands":
        return hands_for(brought, briefing, device.folder / "script", agent.log)

    agent = Agent(link, device, hands, telling(say), holding=lambda hands: holding(hands, tell_labels))
    return await agent.run()


def served(opened: "Callable[[], Serving]") -> History:
    """Open the door, train, show how it goes, and come to an orderly end on SIGTERM too."""
    before, serving = signal.signal(signal.SIGTERM, signal.default_int_handler), None
    try:
        serving = opened()
        done = serving.run.num_rounds_done
        with closing(serving.rounds()) as rounds:
            for _ in shown(rounds, serving.plan.num_rounds, done, console, "waiting for clients"):
                pass
    except KeyboardInterrupt:
        if serving is None:
            raise
        say(f"stopped after round {serving.run.num_rounds_done}; the same command goes on with the run in "
            f"{serving.run.folder}")  # fmt: skip
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return concluded(serving.run)


def _until_stopped(work: Callable[[], Awaitable[None]]) -> None:
    """Run until it is done, or somebody asks this process to end."""

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await work()

    with suppress(asyncio.CancelledError):
        asyncio.run(watched())
        return
    say("stopped; the same command goes on")
    raise SystemExit(130)


def _named(clients: str | None) -> list[str] | None:
    if clients is None:
        return None
    if clients.isdecimal() and int(clients):
        return [f"site-{number + 1}" for number in range(int(clients))]
    names = [name.strip() for name in clients.split(",")]
    if clients.isdecimal() or not all(names) or len(set(names)) != len(names):
        raise ConfigError(f"--clients {clients}: expected a number from 1 on, or names such as alice,bob, each once")
    return names
