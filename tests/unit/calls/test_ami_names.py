import pytest

from toque.calls.ami_names import (
    SwitchRules,
    endpoint,
    explicit_number,
    is_helper,
    is_of,
    is_telephone,
    named_number,
    other_half,
    peer_name,
    reached_number,
)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("PJSIP/1001-0000000f", "PJSIP/1001"),
        ("PJSIP/sales-team-0000000f", "PJSIP/sales-team"),
        ("Local/1001@from-internal-00000000;1", "Local/1001@from-internal"),
        ("DAHDI/i1/41999990001-2f", "DAHDI/i1/41999990001"),
        ("PJSIP/1001-0000000f<ZOMBIE>", "PJSIP/1001"),
    ],
)
def test_the_peer_of_a_channel(name: str, peer: str):
    assert peer_name(name) == peer
    assert endpoint(name) == peer.partition("/")[2]


@pytest.mark.parametrize(
    ("dial_string", "name", "number"),
    [
        ("5541999990001@trunk", "PJSIP/trunk-01", "5541999990001"),
        ("trunk/sip:5541999990001@192.0.2.1:5060", "PJSIP/trunk-01", "5541999990001"),
        ("trunk/5541999990001", "SIP/trunk-01", "5541999990001"),
        ("g0/5541999990001", "DAHDI/i1/5541999990001-1", "5541999990001"),
        ("user:secret@host/5541999990001@context", "IAX2/host-12", "5541999990001"),
        ("PJSIP/5541999990001@trunk", "PJSIP/trunk-01", "5541999990001"),
        ("1001", "PJSIP/1001-01", ""),
        ("PJSIP/1001", "PJSIP/1001-01", ""),
        ("1001/sip:7f3kq@192.0.2.7:5061;ob", "PJSIP/1001-01", ""),
        ("1001@192.0.2.1", "SIP/1001-01", ""),
        ("", "PJSIP/1001-01", ""),
    ],
)
def test_the_number_in_a_dial_string(dial_string: str, name: str, number: str):
    assert explicit_number(dial_string, name) == number


@pytest.mark.parametrize(
    ("dial_string", "name", "own", "number"),
    [
        ("1001", "PJSIP/1001-01", "554130600300", "1001"),
        ("ana", "PJSIP/ana-01", "1001", "1001"),
        ("ana", "PJSIP/ana-01", "", "ana"),
        ("1002@from-queue/n", "Local/1002@from-queue-01;1", "", "1002"),
        ("5541999990001@trunk", "PJSIP/trunk-01", "", "5541999990001"),
    ],
)
def test_whom_a_called_channel_reaches(dial_string: str, name: str, own: str, number: str):
    assert reached_number(dial_string, name, own) == number


@pytest.mark.parametrize(
    ("channel", "number"),
    [
        ("PJSIP/1999", "1999"),
        ("Local/1999@internal", "1999"),
        ("PJSIP/5541999990001@trunk", "5541999990001"),
        ("SIP/trunk/5541999990001", "5541999990001"),
    ],
)
def test_the_number_of_an_originate(channel: str, number: str):
    assert named_number(channel) == number


@pytest.mark.parametrize(
    ("name", "dialled", "matches"),
    [
        ("PJSIP/1001-0000000f", "PJSIP/1001", True),
        ("PJSIP/10011-0000000f", "PJSIP/1001", False),
        ("PJSIP/trunk-0000000f", "PJSIP/5541999990001@trunk", True),
        ("SIP/trunk-0000000f", "SIP/trunk/5541999990001", True),
        ("Local/1001@x-0000000f;1", "Local/1001@x/n", True),
        ("PJSIP/1001-0000000f", "", False),
    ],
)
def test_whether_a_channel_was_made_for_an_originate(name: str, dialled: str, matches: bool):
    assert is_of(name, dialled) is matches


def test_the_halves_of_a_local_channel():
    assert other_half("Local/1001@x-01;1") == "Local/1001@x-01;2"
    assert other_half("Local/1001@x-01;2") == "Local/1001@x-01;1"
    assert other_half("PJSIP/1001-01") == other_half("Local/1001@x-01") == ""


def test_the_switchs_own_channels():
    assert is_helper("CBAnn/x")
    assert is_helper("")
    assert not is_helper("PJSIP/1001-01")
    assert not is_telephone("PJSIP/trunk-01")


@pytest.mark.parametrize(
    ("name", "context", "is_outside"),
    [
        ("PJSIP/trunk-a-01", "anything", True),
        ("PJSIP/1001-01", "from-internal", False),
        ("SIP/provider-01", "from-trunk-sip-provider", True),
        ("PJSIP/1001-01", "from-trunk", False),
    ],
)
def test_what_leads_outside(name: str, context: str, is_outside: bool):
    assert SwitchRules(trunks=("PJSIP/trunk-*",)).is_outside(name, context) is is_outside
