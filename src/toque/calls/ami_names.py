"""What Asterisk's names say: channel names, dial strings and dialled extensions, and the operator's rules for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

# Channels that are nobody's telephone: helpers of bridges, recorders, what stands in for a channel while it is moved.
_HELPERS = frozenset(
    {
        "announcer", "asyncgoto", "bridge", "cbann", "cbrec", "confbridgerecorder", "message", "mixer", "multicastrtp",
        "outgoingspoolfailed", "recorder", "snoop", "surrogate", "test", "unicastrtp", "voicemail", "mobileaudio",
    }
)  # fmt: skip
_SPECIAL_EXTENSIONS = frozenset({"", "s", "h", "t", "i", "o", "a", "e", "T", "failed", "fax", "talk", "hang", "onhangup"})
_SUFFIX = re.compile(r"-[0-9a-fA-F]+(?:\.[0-9]+)?(?:;[12])?$")  # `-0000000f`; `-12.0` of Khomp
_LINES = frozenset(
    {"capi", "dahdi", "dgv", "dongle", "khomp", "misdn", "mobile", "quectel", "vpb", "zap"}
)  # whose names number a port
_GROUP = re.compile(r"^[gGrRbB][0-9]+[a-z]?(?:/|$)")  # of lines, any of which is taken
_SHORT = 7  # digits that a full number has more of
_TECHNOLOGY = re.compile(r"^[A-Za-z][A-Za-z0-9]*/")
_NUMBER = re.compile(r"^\+?[0-9*#]{2,}$")
_TELEPHONE = re.compile(r"^[0-9]{1,8}$")  # an endpoint that is named like an extension
_FEATURE = "*"  # what begins with it asks something of the switch: a pickup, a voicemail box
_ZOMBIE = "<ZOMBIE>"


@dataclass(frozen=True, slots=True)
class SwitchRules:
    """What the operator says of one switch, for calls whose numbers are nobody's lines.

    `trunks` are shell patterns of channel names without their suffix (`PJSIP/trunk*`); calls that come in over them, or in one
    of the `outside_contexts`, are received. `tenant_variable` names a channel variable that says whose call it is.
    """

    trunks: tuple[str, ...] = ()
    outside_contexts: tuple[str, ...] = ("from-trunk*", "from-pstn*", "from-did*", "from-digital*", "from-analog*", "ext-did*")
    tenant_variable: str = ""

    def is_outside(self, name: str, context: str) -> bool:
        """Whether a channel leads out of the switch."""
        peer = peer_name(name)
        if any(fnmatchcase(peer, pattern) for pattern in self.trunks):
            return True
        return any(fnmatchcase(context, pattern) for pattern in self.outside_contexts) and not is_telephone(name)


def peer_name(name: str) -> str:
    """A channel's name without what tells it from the peer's other channels: `PJSIP/1001` of `PJSIP/1001-0000000f`."""
    return _SUFFIX.sub("", name.removesuffix(_ZOMBIE))


def endpoint(name: str) -> str:
    """Whom a channel belongs to: `1001` of `PJSIP/1001-0000000f`."""
    return peer_name(name).partition("/")[2]


def is_telephone(name: str) -> bool:
    """Whether the channel's endpoint is named like an extension."""
    return _TELEPHONE.match(endpoint(name)) is not None and name.partition("/")[0].lower() not in _LINES


def is_local(name: str) -> bool:
    """Whether this is half of a channel that leads back into the dialplan."""
    return name.startswith("Local/")


def is_helper(name: str) -> bool:
    """Whether this channel is the switch's own, and nobody's telephone."""
    return name.partition("/")[0].lower() in _HELPERS or not name


def is_gone(name: str) -> bool:
    """Whether a channel has given its place to another one and only waits to be destroyed."""
    return name.endswith(_ZOMBIE)


def other_half(name: str) -> str:
    """The name of a Local channel's other half; "" for any other channel."""
    if not is_local(name):
        return ""
    if name.endswith(";1"):
        return name[:-1] + "2"
    return name[:-1] + "1" if name.endswith(";2") else ""


def local_number(name: str) -> str:
    """The extension that a Local channel leads to."""
    return endpoint(name).partition("@")[0]


def is_number(extension: str) -> bool:
    """Whether an extension can have been dialled by somebody."""
    return extension not in _SPECIAL_EXTENSIONS


def is_feature(extension: str) -> bool:
    """Whether an extension asks something of the switch rather than calling somebody."""
    return extension.startswith(_FEATURE)


def is_short(extension: str) -> bool:
    """Whether an extension may be the switch's own: a feature, a conference, a pickup by any code."""
    return len(extension) <= _SHORT or is_feature(extension)


def explicit_number(dial_string: str, name: str) -> str:
    """The number that a dial string names beside the endpoint (`5541…@trunk`, `trunk/sip:5541…@host`, `g0/5541…`), else "".

    A string that names a telephone's own address (`1001/sip:xyz@192.0.2.1`) has none: that telephone is reached.
    """
    technology = name.partition("/")[0]
    text = dial_string.removeprefix(technology + "/") if technology else dial_string
    first, slash, rest = text.partition("/")
    if not slash:
        user, at, _ = text.partition("@")
        return user if at and user != endpoint(name) else ""
    if _TELEPHONE.match(first) and first == endpoint(name):
        return ""
    uri = rest.strip("<>").rpartition("/")[2]
    user = uri.removeprefix("sips:").removeprefix("sip:").partition("@")[0].partition(";")[0].partition(":")[0]
    is_address = uri.startswith(("sip:", "sips:"))  # of a telephone that registered under any name, or of a number at a trunk
    if is_address and (not _NUMBER.match(user) or user in endpoint(name)):
        return ""
    return user if user != endpoint(name) else ""


def reached_number(dial_string: str, name: str, own_number: str) -> str:
    """Whom a called channel reaches; `own_number` is its caller id when it was made, which is its endpoint's own."""
    if is_local(name):
        return local_number(name)
    number = explicit_number(dial_string, name)
    if number:
        return number
    return endpoint(name) if is_telephone(name) or not own_number else own_number


def named_number(channel: str) -> str:
    """The number in the `Channel` of an Originate that came to nothing: `PJSIP/1999`, `Local/1999@internal`."""
    text = _TECHNOLOGY.sub("", channel)
    return text.rpartition("/")[2].removeprefix("sip:").partition("@")[0]


def is_outside_number(channel: str) -> bool:
    """Whether the `Channel` of an Originate names a number beside the endpoint: `PJSIP/5541…@trunk`, `SIP/trunk/5541…`."""
    peer = channel.partition("/")[2]
    return not is_local(channel) and ("@" in peer or "/" in peer)


def is_of(name: str, dialled: str) -> bool:
    """Whether a channel of this name was made for this `Channel` of an Originate (`PJSIP/1001`, `PJSIP/5541…@trunk`)."""
    if not dialled:
        return False
    technology, _, peer = dialled.partition("/")
    candidates = (
        dialled,
        f"{technology}/{peer.rpartition('@')[2]}",
        f"{technology}/{peer.partition('/')[0]}",
        dialled.removesuffix("/n"),
    )
    if _GROUP.match(peer):
        return name.startswith(technology + "/")
    return name == dialled or any(name.startswith(candidate + "-") for candidate in candidates)
