"""What a front answers to those who may ask, over real sockets and a real journal."""

from fronts import MODEL, Device, place, within
from journals import sha256

from roundelay.deployment import protocol as p
from roundelay.deployment.records import TaskState, Verdict


def test_a_task_goes_its_way() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            said = await device.ask("GET", p.RUN)
            assert p.Briefing.model_validate_json(said.body).client == "a"
            assert (await device.poll()).status == 204
            digest = here.open_round()
            offer = p.Offer.model_validate_json((await device.poll(wait_s=5)).body)
            assert (offer.id, offer.round, offer.kind, offer.sent, offer.size) == (1, 1, "train", digest, len(MODEL))
            assert (await device.ask("GET", f"{p.BLOBS}/{digest}")).body == MODEL
            answer = b"an answer" * 300
            receipt = await device.deliver(1, answer)
            assert receipt.settled == p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=False)
            with here.journal.blobs.open(sha256(answer)) as file:
                assert file.read() == answer
            assert here.news == [None, 1]
            kept = here.journal.tasks.get(1)
            assert kept is not None
            assert kept.state is TaskState.RECEIVED

    with place() as here:
        within(go())
