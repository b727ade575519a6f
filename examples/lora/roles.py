"""Who is pre-trained on, and who takes part: the roles of the histories are the clients, those of all other plays are
public.
"""

import roundelay as rd

HISTORIES = ("EDWARD_III_", "HENRY_", "KING_JOHN_", "RICHARD_")


def public(folder: str = "data/shakespeare") -> rd.FederatedData:
    """Return what the base is trained on, in the hands of one client, "all"."""
    data = rd.data.shakespeare(folder)
    return data.among([client for client in data.clients if not client.startswith(HISTORIES)]).pooled()


def histories(folder: str = "data/shakespeare", min_characters: int = 5000) -> rd.FederatedData:
    """Return a client for each role that speaks that much; the server holds out what all of them are tested on."""
    data = rd.data.shakespeare(folder, min_characters=min_characters)
    own = data.among([client for client in data.clients if client.startswith(HISTORIES)])
    train, test = ({client: part(client) for client in own.clients} for part in (own.train, own.test))
    return rd.FederatedData.from_datasets(train, own.pooled().test("all"), test)
