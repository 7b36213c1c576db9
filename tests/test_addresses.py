import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facetclip.addresses import PORTS, Refused, allowed_hosts, is_public, judged, place, redirected

PRIVATE = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *("198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
]
PRIVATE_V6 = ["::/128", "::1/128", "100::/64", "2001:db8::/32", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"]
private = st.sampled_from(PRIVATE).flatmap(lambda network: st.ip_addresses(network=network))


@given(private)
def test_a_private_address_stays_private_in_every_ipv6_form(address):
    number = int(address)
    assert not is_public(str(address))
    for prefix, shift in (("::ffff:0:0", 0), ("64:ff9b::", 0), ("2002::", 80), ("::", 0), ("64:ff9b:1::", 0)):
        assert not is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | number << shift)))


@given(st.sampled_from(PRIVATE_V6).flatmap(lambda network: st.ip_addresses(network=network)))
def test_a_private_ipv6_address_is_refused(address):
    with pytest.raises(Refused):
        judged(where := place(f"http://[{address}]/a.jpg"), [where.host])


@given(private, st.sampled_from([str, lambda a: str(int(a)), lambda a: hex(int(a)), lambda a: f"0{int(a):o}"]))
def test_no_spelling_of_a_private_address_gets_through(address, spelling):
    with pytest.raises(Refused):
        judged(where := place(f"http://{spelling(address)}/a.jpg"), [where.host])


@given(st.ip_addresses())
def test_what_is_public_is_what_the_registry_calls_global(address):
    if is_public(str(address)):
        assert address.is_global or getattr(address, "ipv4_mapped", None) or str(address).startswith("64:ff9b:")
        assert not address.is_multicast
        assert not address.is_loopback


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "http://a@", "http://[", "//"]))
def test_any_text_is_refused_or_leads_to_one_canonical_place(text, start):
    try:
        where = place(start + text)
    except Refused:
        return
    assert where.scheme in PORTS
    assert where.port in PORTS.values()
    assert where.target.isascii()
    assert where.target.startswith("/")
    assert not set(where.host + where.target) & set(" \r\n\\\0")
    again = f"{where.scheme}://{where.authority}{where.target}"
    assert place(again) == where


@given(st.text(max_size=60))
def test_a_redirect_is_refused_or_judged_like_any_url(location):
    try:
        where = place(redirected("https://shop.example/a/b.jpg", location))
    except Refused:
        return
    assert where.port in PORTS.values()


def test_one_private_address_among_public_ones_refuses_the_host():
    where = place("http://shop.example/a.jpg")
    assert judged(where, ["8.8.8.8", "1.1.1.1"]) == ("8.8.8.8", "1.1.1.1")
    with pytest.raises(Refused, match="not a public address"):
        judged(where, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(Refused, match="no address"):
        judged(where, [])


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0"])
def test_no_advice_lets_in_a_metadata_service_by_address_or_name(address):
    host = f"[{address}]" if ":" in address else address
    where = place(f"http://{host}/latest/")
    for refused, addresses in ((where, [where.host]), (place("http://metadata.example/"), ["10.0.0.1", address])):
        with pytest.raises(Refused, match="not a public address") as caught:
            judged(refused, addresses)
        assert "--allow-host" not in str(caught.value)
    with pytest.raises(Refused, match="port 8080") as caught:
        place(f"http://{host}:8080/latest/")
    assert "--allow-host" not in str(caught.value)
    allowed = allowed_hosts(["metadata.example"])
    with pytest.raises(Refused):
        judged(place("http://metadata.example/", allowed), [address], allowed)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.9/a", "https://10.0.0.9/a", "http://[fd00::9]/a", "http://[fd00::9]:81/a"]
)
def test_the_advice_of_a_refusal_lets_the_host_in(url):
    def asked(allowed):
        where = place(url, allowed)
        return judged(where, [where.host], allowed)

    with pytest.raises(Refused) as caught:
        asked(frozenset())
    assert asked(allowed_hosts([str(caught.value).partition("--allow-host ")[2].split()[0]]))


def test_a_blank_within_a_url_is_refused_with_what_to_write():
    with pytest.raises(Refused, match="a blank in a URL; write %20"):
        place("https://shop.example/a b.jpg")
    with pytest.raises(Refused, match="control character or backslash"):
        place("https://shop.example/a\\b.jpg")


def test_a_host_is_allowed_exactly_and_never_to_lead_to_the_metadata_service():
    allowed = allowed_hosts(["images.lan:8080", "other.lan"])
    assert judged(place("http://IMAGES.lan.:8080/a.jpg", allowed), ["10.0.0.9"], allowed) == ("10.0.0.9",)
    assert judged(place("https://other.lan/a.jpg", allowed), ["10.0.0.9"], allowed) == ("10.0.0.9",)
    with pytest.raises(Refused, match="not a public address"):
        judged(place("http://images.lan/a.jpg", allowed), ["10.0.0.9"], allowed)
    with pytest.raises(Refused, match="port 8081"):
        place("http://images.lan:8081/a.jpg", allowed)
    with pytest.raises(Refused):
        judged(place("http://x.images.lan/a.jpg", allowed), ["10.0.0.9"], allowed)
    with pytest.raises(Refused):
        judged(place("http://images.lan:8080/a.jpg", allowed), ["169.254.169.254"], allowed)
    for wrong in ("", "a b", "http://a.lan", "a.lan/x", "u@a.lan", "a.lan:", "a.lan:99999"):
        with pytest.raises(Refused):
            allowed_hosts([wrong])
