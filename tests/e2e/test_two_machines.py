"""The page for administrators, followed on two machines with a link between them that is cut in mid-upload."""

import re
import shutil
import time
from pathlib import Path

import pytest
from machines import SERVER_NAME, Pair, Process, two_machines, until

from roundelay import config
from roundelay.deployment.protocol import PART_BYTES
from roundelay.deployment.trust.kits import provision
from roundelay.site import simulated

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
SITES = ("alice", "bob")
NUM_VALUES = 784 * 4096 + 4096 + 4096 * 1024 + 1024 + 1024 * 10 + 10


def commands(heading: str) -> list[str]:
    """Return what is to be typed in a section, without the first word."""
    (section,) = re.findall(rf"^## {re.escape(heading)}$(.*?)(?=^## )", PAGE, flags=re.S | re.M)
    blocks = re.findall(r"```console\n(.*?)```", section, flags=re.S)
    return [line.removeprefix("roundelay ") for block in blocks for line in block.splitlines()]


def job_for(folder: Path, num_clients: tuple[str, str] = ("1", "2"), **changes: tuple[str, str]) -> Path:
    """Write the page's job, for two, with settings changed."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.S)
    for name, (old, new) in {**changes, "num_clients": num_clients}.items():
        before = f"{name} = {old}\n"
        assert before in text
        text = text.replace(before, f"{name} = {new}\n")
    path = folder / "job.toml"
    path.write_text(text)
    return path


def begun(pair: Pair) -> tuple[Process, list[Process], list[Path]]:
    """Follow the page: provision, doctor, serve; hand out the kits; doctor and join at each site."""
    make, examine_server, serve, examine_site, join = commands("Two machines, and kits for sites")
    server, site = pair.server, pair.site
    made = server.begin(make)
    assert made.ended() == 0, made.said
    healthy = server.begin(examine_server)
    serving = server.begin(serve)
    serving.wait_for("with a kit or token of their own")
    assert healthy.ended() == 0, healthy.said
    clients, kits = [], []
    for number, name in enumerate(SITES):
        kit = site.folder / name
        (server.folder / "federation" / "sites" / name).rename(kit)
        words = join.replace("alice", name).replace("0/2", f"{number}/2")
        clients.append(site.begin(words, kit, name))
        kits.append(kit)
    seen = site.begin(examine_site, kits[0])
    assert seen.ended() == 0, seen.said
    assert "wrong" not in seen.said
    return serving, clients, kits


def sha256_of(serving: Process) -> str:
    return serving.wait_for(r"sha256: ([0-9a-f]{64})").group(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_link_that_is_cut_in_mid_upload_costs_a_part_and_no_bit(tmp_path: Path) -> None:
    both = len(SITES) * NUM_VALUES * 4
    with two_machines(tmp_path) as pair:
        if not pair.is_slow:
            pytest.skip("tc cannot slow a link down here, so that nothing could be cut in the middle")
        job = job_for(pair.server.folder, hidden=("[64]", "[4096, 1024]"), num_rounds=("3", "2"))
        serving, clients, kits = begun(pair)
        if shutil.which("curl") is not None:
            assert '"ready": true' in pair.server.typed(commands("Is it well?")[0])
        sent: list[int] = []
        for number, down_s in enumerate((4.0, 45.0), start=1):  # what TCP bears with; and longer than either side does
            before = pair.site.sent_bytes()
            for client in clients:
                client.wait_for(f"task .*round {number}")
            until(lambda: pair.site.sent_bytes() > before + 9 * both // 10 or serving.is_over, "an upload")  # noqa: B023
            assert not serving.has_said(f"round {number}/2"), "too late: the answers are there already"
            pair.cut()
            time.sleep(down_s)
            pair.mend()
            serving.wait_for(f"round {number}/2", 300)
            sent.append(pair.site.sent_bytes() - before)
        came = sha256_of(serving)
        for client in clients:
            assert client.ended() == 0, client.said
        assert any("it goes on: the server answers" in client.said for client in clients), "nobody noticed"
    for num_bytes in sent:
        assert both < num_bytes < 1.05 * both + len(SITES) * PART_BYTES, "more than a part of each was sent again"
    assert not [file for kit in kits for file in kit.glob("answers/*/*")], "what the server has is not kept"
    assert simulated(config.load(job), SITES).run().sha256 == came


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_listen_on_another_machine_are_dialled_over_tls_and_again_after_a_cut(tmp_path: Path) -> None:
    listen, run, again = commands("Workers that listen")
    with two_machines(tmp_path) as pair:
        job = job_for(pair.server.folder, hidden=("[64]", "[4096, 1024]"), num_rounds=("3", "2"))
        workers = []
        for number, name in enumerate(SITES):
            words = listen.replace("alice", name).replace("10002", f"1000{number + 2}").replace("0/3", f"{number}/2")
            workers.append(pair.site.begin(words.replace("mnist:./data", "digits"), name=name))
            workers[-1].wait_for("waits on")
        run, again = (re.sub(r"10\.0\.0\.5(\d):10002", r"10.214.0.2:1000\1", words) for words in (run, again))
        running = pair.server.begin(run)
        for worker in workers:
            worker.wait_for("task .*round 1")
        pair.cut()
        time.sleep(2)
        pair.mend()
        came = sha256_of(running)
        assert running.ended() == 0, running.said
        for worker in workers:
            worker.wait_for("is over")
            assert "trusting the coordinator with pin" in worker.said
            assert not worker.is_over
        simulating = pair.server.begin(again)
        assert sha256_of(simulating) == came
    assert simulated(config.load(job), SITES).run().sha256 == came


def test_a_site_on_another_machine_trains_to_the_bits_of_the_simulation(tmp_path: Path) -> None:
    with two_machines(tmp_path) as pair:
        server, site = pair.server, pair.site
        provision(server.folder / "federation", [SERVER_NAME], ["alice"], now_s=time.time())
        kit = (server.folder / "federation" / "sites" / "alice").rename(site.folder / "alice")
        job = job_for(server.folder, num_clients=("1", "1"), num_rounds=("3", "1"))
        serving = server.begin("serve job.toml --folder federation/server --clients alice")
        serving.wait_for("with a kit or token of their own")
        client = site.begin(f"join https://{SERVER_NAME}:8443 --kit . --id alice --data digits", kit)
        client.wait_for("task 1: train")
        pair.cut()
        pair.mend()
        came = sha256_of(serving)
        assert client.ended() == 0, client.said
    assert simulated(config.load(job), ["alice"]).run().sha256 == came
