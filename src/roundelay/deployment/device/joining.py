"""How a device becomes a client of a server, once: with a token and a pin, or with the kit that it was handed."""

import asyncio
import os
from pathlib import Path

from roundelay.deployment.device.device import Device
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.trouble import Refusal
from roundelay.deployment.protocol import printable
from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC
from roundelay.deployment.trust.identity import DeviceKey, read_secret
from roundelay.deployment.trust.kits import DEVICE_KEY, TOKEN
from roundelay.deployment.trust.pinning import client_context, trusted_authority
from roundelay.errors import DeviceError, IdentityError


async def enrolled(
    device: Device,
    url: str,
    *,
    token: str = "",
    pin: str = "",
    client: str | None = None,
    kit: Path | None = None,
    insecure: bool = False,
) -> Link:
    """Return a link, not yet open, to the server at ``url`` for the client that this device is.

    A device that has joined before needs neither token nor pin, and asks nobody. Should the answer to its joining be
    lost, it may be called again with the same token: the key is the same. ``client`` is the name that the site would
    like, None for whatever the token says. ``insecure`` allows plain HTTP to another machine, where anybody between can
    read and change everything.

    Raises:
        IdentityError: the server is not the one that the pin names, or something is missing or refused; says what.
        DeviceError: the folder belongs to another client or server.
        Unreachable, Again: the server does not answer, or not now.
    """
    address = server_address(url, insecure)
    if kit is not None:
        token = _unpacked(device, kit, token)
    await _trust(device, address, pin)
    authority = device.authority
    context = client_context(authority) if authority is not None else None
    link = Link(address, context, device.key(), device.counter)
    known = device.require(client, str(address))
    if known is None:
        if token:
            name = await _joined(link, token, client)
        elif kit is not None and (kit / DEVICE_KEY).exists():  # its key was enrolled when the kit was made
            name = client or kit.resolve().name
        else:
            raise IdentityError(f"{address}: this device has not joined yet, and needs a token: give the line that the "
                                "server's administrator sent, or the kit's folder")  # fmt: skip
        device.join(name, str(address))
        link.client = name
    else:
        link.client = known.client
    return link


def require_kit(kit: Path) -> None:
    """Raises:
    IdentityError: it is none.
    """
    if not (kit / AUTHORITY_PUBLIC).is_file():
        raise IdentityError(f"{kit}: is no kit, since {AUTHORITY_PUBLIC} is not in it; give the folder that "
                            "the server's administrator sent")  # fmt: skip


def token_in(path: Path) -> str:
    """Return the token that was saved in a file.

    Raises:
        IdentityError: the file is absent, or open to others.
    """
    return read_secret(path).decode("ascii", "replace").strip()


def server_address(url: str, insecure: bool) -> Address:
    """Read where a server is.

    Raises:
        IdentityError: it is no address, or one to which nothing would be encrypted.
    """
    if not url.startswith("http://"):
        return Address.of(url)
    address = Address.plain(url)
    if not (insecure or address.is_loopback):
        raise IdentityError(
            f"{address}: over plain http everybody between here and there can read and change what is sent; give an "
            "address with https://, or allow it with --insecure if the way is protected otherwise"
        )
    return address


async def _trust(device: Device, address: Address, pin: str) -> None:
    """See to it that the device knows the one authority that its server must have; for plain HTTP that there is none.

    Raises:
        IdentityError, DeviceError: it cannot.
    """
    known = device.pin
    if not address.secured:
        if pin or known:
            raise DeviceError(f"{address}: a server with a pin is spoken to over https:// only, or anybody could pose "
                              f"as it; the pin is {pin or known}")  # fmt: skip
    elif known is None:
        if not pin:
            raise IdentityError(f"{address}: whose server is this? Give the pin from its administrator (--pin), or the "
                                "kit's folder")  # fmt: skip
        device.trust(await asyncio.to_thread(trusted_authority, address, pin))
    elif pin and pin != known:
        raise DeviceError(f"{device.folder}: trusts the server with pin {known}, not the one with {pin}; give another "
                          "folder, one for each server")  # fmt: skip


async def _joined(link: Link, token: str, client: str | None) -> str:
    try:
        async with link:
            return (await link.join(token, client)).client
    except Refusal as refusal:
        raise IdentityError(f"{link.address}: {printable(refusal.problem.message)}") from refusal


def _unpacked(device: Device, kit: Path, token: str) -> str:
    """Copy what the device keeps out of a kit, and return the token, which it does not need again.

    Raises:
        IdentityError: it is no kit, or a secret in it is open to others.
    """
    require_kit(kit)
    device.trust((kit / AUTHORITY_PUBLIC).read_bytes())
    if os.path.lexists(kit / DEVICE_KEY) and (kit / DEVICE_KEY).resolve() != (device.folder / DEVICE_KEY).resolve():
        device.take_key(DeviceKey.load(kit / DEVICE_KEY))
    if not token and os.path.lexists(kit / TOKEN):
        token = token_in(kit / TOKEN)
    return token
