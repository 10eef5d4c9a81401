"""The envelope and the table of return codes."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.web.directcall import METHODS
from toque.web.envelopes import RETURN_CODES, envelope, render
from toque.web.methods import COMMON_PROBLEMS
from toque.web.openapi import openapi_document


def test_the_members_come_in_the_order_of_the_contract():
    assert list(envelope("m", "000", "texto", code="x")) == ["api", "modulo", "status", "codigo", "msg", "code"]


@pytest.mark.parametrize(("codigo", "status"), [("000", "ok"), ("001", "erro"), ("010", "erro")])
def test_only_000_is_ok(codigo: str, status: str):
    assert envelope("m", codigo, "texto")["status"] == status


def test_json_is_one_key_a_line():
    body, kind = render(envelope("m", "000", "ção", total=1, data=[{"code": "x", "pin": None}]), "json")
    assert kind == "application/json; charset=utf-8"
    assert body.decode() == (
        "{\n"
        '    "api": "voz",\n'
        '    "modulo": "m",\n'
        '    "status": "ok",\n'
        '    "codigo": "000",\n'
        '    "msg": "ção",\n'
        '    "total": 1,\n'
        '    "data": [\n'
        "        {\n"
        '            "code": "x",\n'
        '            "pin": null\n'
        "        }\n"
        "    ]\n"
        "}\n"
    )


def test_xml_has_an_element_per_member_and_an_item_per_entry():
    body, kind = render(envelope("m", "000", "<ção> & co", total=1, data=[{"code": "x", "pin": None}, {"code": "y"}]), "xml")
    assert kind == "application/xml; charset=utf-8"
    root = ET.fromstring(body)
    assert root.tag == "directcall"
    assert [child.tag for child in root] == ["api", "modulo", "status", "codigo", "msg", "total", "data"]
    assert root.findtext("msg") == "<ção> & co"
    assert [item.findtext("code") for item in root.findall("data/item")] == ["x", "y"]
    assert root.find("data/item/pin").text is None


def test_the_root_of_a_token():
    assert ET.fromstring(render({"access_token": "x"}, "xml", root="oauth")[0]).tag == "oauth"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_json_and_is_well_formed_xml(text: str):
    assert json.loads(render({"msg": text}, "json")[0])["msg"] == text
    found = ET.fromstring(render({"msg": text}, "xml")[0]).findtext("msg")
    plain = re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    assert found.replace("\r\n", "\n").replace("\r", "\n") == plain.replace("\r\n", "\n").replace("\r", "\n")


# The tables


def test_the_paths_modules_and_roots_are_those_of_the_contract():
    assert {method.path: (method.module, method.root, method.http_methods) for method in METHODS} == {
        "/request_token": ("request-token", "oauth", ("POST",)),
        "/voz/add-callback": ("add-callback-status-chamada", "directcall", ("POST",)),
        "/voz/remove-callback": ("remove-callback-status-chamada", "directcall", ("POST",)),
        "/voz/list-callback": ("list-callback-status-chamada", "directcall", ("GET", "POST")),
    }


def test_the_return_codes_are_those_of_the_contract():
    rows = [(row.http_status, row.codigo) for row in RETURN_CODES]
    assert len(set(rows)) == len(rows)
    assert all(row.meaning for row in RETURN_CODES)
    assert {codigo for _, codigo in rows} == {"000", "001", "005", "006", "009", "010"}
    assert [row for row in rows if row[1] == "000"] == [(200, "000")]
    assert set(rows) >= {(400, "001"), (401, "006"), (404, "009"), (404, "010"), (405, "001"), (413, "001")}
    assert set(rows) >= {(429, "006"), (503, "005"), (500, "005")}


def test_every_problem_of_a_method_is_in_the_table():
    rows = {(row.http_status, row.codigo) for row in RETURN_CODES}
    for method in METHODS:
        assert set(method.problems) | set(COMMON_PROBLEMS) <= rows


def test_every_method_is_described_in_the_openapi_document():
    document = openapi_document()
    for method in METHODS:
        for verb in method.http_methods:
            operation = document["paths"][method.path][verb.lower()]
            assert operation["summary"]
            told = json.dumps(operation, ensure_ascii=False)
            for described in (*method.fields, *method.members):
                assert f'"{described.name}"' in told
                assert described.text in told
